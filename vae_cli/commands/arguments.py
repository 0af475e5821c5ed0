"""What is typed after `vae-train`, checked and put in order before Hydra reads it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from vae_cli.commands.folders import is_saved
from vae_cli.commands.shared import refuse_misused
from vae_cli.config import words
from vae_cli.system import ranks
from vae_cli.system.disk import SETTINGS
from vae_cli.system.errors import UserError
from vae_cli.system.output import quoted, shell_assignment

FORCED = "++"  # before a setting: Hydra takes it whether the chosen options have it or not
SWEEP = {"-m", "--multirun"}
NO_RUN = ("null", "auto")  # values of resume= that name no folder


def prepare(arguments: Sequence[str]) -> list[str]:
    """Check what Hydra would misread, and send it to the folder of the run to go on with, if any.

    Raises:
        UserError: what was typed contradicts itself, or there is no such run.
    """
    arguments = sorted(arguments, key=lambda each: each not in SWEEP)  # Hydra wants them first
    _remember_own_options(arguments)
    refuse_misused(arguments)
    keys = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
    several = bool(SWEEP & set(arguments))
    _refuse_contradictions(arguments, keys, several)
    given = _unquoted(keys.get("resume") or keys.get("+resume") or keys.get("++resume") or "null")
    others = [argument for argument in arguments if argument.partition("=")[0].lstrip("+") != "resume"]
    if given not in NO_RUN:
        others = [f"{FORCED}{each}" if _of_own_option(each) else each for each in others]
    if ranks.rank() > 0:  # the first rank knows the folder
        return [*others, "hydra.run.dir=."]
    if given in NO_RUN:
        return list(arguments)
    if several:
        raise UserError(f"resume={given}: goes on with a single run, not with a sweep")
    _require_saved(given)
    return [*others, f"resume={quoted(given)}", f"hydra.run.dir={quoted(given)}"]


def _refuse_contradictions(arguments: Sequence[str], keys: dict[str, str], several: bool) -> None:
    if several and {"--cfg", "-c"} & set(arguments):
        raise UserError("--cfg: shows the settings of one run; leave -m out")
    if "trainer.epochs" in keys and keys.get("trainer.steps", "null") != "null":
        raise UserError("trainer.epochs: has no effect beside trainer.steps; give one of the two")
    if several and ranks.count() > 1:
        raise UserError(
            "-m: a sweep under torchrun is not allowed; with hydra/launcher=submitit_slurm, "
            "hydra.launcher.tasks_per_node=N makes each of its jobs parallel"
        )


def _require_saved(given: str) -> None:
    """Refuse a folder without a run, or whose run has saved nothing.

    Raises:
        UserError: says what is missing, and what to do about it.
    """
    folder = Path(given)
    if not (folder / SETTINGS).is_file():
        missing = ".hydra/config.yaml"
    elif not is_saved(folder):
        missing = "checkpoints/last.pt"
    else:
        return
    raise UserError(f"resume={given}: no run to go on with there ({missing} is missing){_hint(given)}")


def _hint(given: str) -> str:
    folder = Path(given)
    if (folder / ".hydra").is_dir() and not is_saved(folder):
        again = shell_assignment("hydra.run.dir", given)
        return f"; it saved nothing yet: begin it anew with its whole command, {again} resume=auto"
    jobs = sorted(str(path.parents[1]) for path in folder.glob("*/checkpoints/last.pt"))
    return f"; it is a sweep, choose one of its jobs: {', '.join(jobs[:9])}" if jobs else ""


def _of_own_option(argument: str) -> bool:
    """Whether an argument sets something of an option: a run to go on with has its own, which need not be the usual."""
    key = argument.partition("=")[0]
    return "." in key and key.partition(".")[0] in words.groups()


def _unquoted(value: str) -> str:
    """Return what Hydra reads from a value in quotes; one without them may be any path."""
    quote = value[:1]
    return value[1:-1].replace(f"\\{quote}", quote) if quote in ("'", '"') and value[-1:] == quote else value


def _remember_own_options(arguments: Sequence[str]) -> None:
    """Let error messages know the options of a --config-dir."""
    for flag, value in pairwise(arguments):
        if flag in ("--config-dir", "-cd"):
            words.OWN_CONF.append(Path(value))
