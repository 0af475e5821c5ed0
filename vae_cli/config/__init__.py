"""From YAML to typed settings: types, the check, what cannot be together, stored runs, trust. No torch here."""

from vae_cli.config.check import check, check_part, compose, validate, validate_evaluate
from vae_cli.config.commands import PATHS
from vae_cli.config.earlier import modernise, modernise_state
from vae_cli.config.rules import refuse_without_validation
from vae_cli.config.stored import (
    MAY_CHANGE,
    MOVES,
    MUST_STAY,
    as_chosen,
    differing,
    flat,
    plain_yaml,
    require_run,
    stays,
    stored,
    typed,
)

__all__ = [
    "MAY_CHANGE",
    "MOVES",
    "MUST_STAY",
    "PATHS",
    "as_chosen",
    "check",
    "check_part",
    "compose",
    "differing",
    "flat",
    "modernise",
    "modernise_state",
    "plain_yaml",
    "refuse_without_validation",
    "require_run",
    "stays",
    "stored",
    "typed",
    "validate",
    "validate_evaluate",
]
