"""From YAML to typed settings: types, the check, what cannot be together, stored runs, trust. No torch here.

The names below are found when they are first used: pydantic takes a third of the time that `--cfg job` does.
"""

from importlib import import_module

TYPE_CHECKING = False  # as mypy knows it
if TYPE_CHECKING:
    from vae_cli.config.check import check_part, compose, validate, validate_evaluate
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
        typed,
    )

_WHERE = ("check", "commands", "earlier", "rules", "stored")  # modules, in each of which some are
__all__ = [
    "MAY_CHANGE",
    "MOVES",
    "MUST_STAY",
    "PATHS",
    "as_chosen",
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
    "typed",
    "validate",
    "validate_evaluate",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'vae_cli.config' has no attribute {name!r}")
    modules = (import_module(f"{__name__}.{each}") for each in _WHERE)
    return next(getattr(module, name) for module in modules if hasattr(module, name))
