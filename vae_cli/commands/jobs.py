"""Finished runs and the jobs of sweeps: found and read, missing ones named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae_cli.commands.sweep import REASON
from vae_cli.config import flat
from vae_cli.config.stored import stored
from vae_cli.system.disk import SETTINGS, read_object
from vae_cli.system.errors import UserError
from vae_cli.system.output import writable

SAME = (
    "_target_",
    "seed",
    "binarize",
    "dequantize",
    "standardize",
    "test",
    "limit",
    "path",
    "root",
)  # of data, to be compared
LISTED = 20  # jobs that are missing, each with its line
LONGEST = 500  # letters of the reason that one gives


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, its settings as {'kl.weight': 1.0, …}, its numbers."""

    folder: Path
    settings: dict[str, Any]
    numbers: dict[str, Any]

    @property
    def measure(self) -> tuple[Any, ...]:
        """What its numbers measure: runs compare only if this is equal."""
        data = [self.settings.get(f"data.{key}") for key in SAME]
        return (self.numbers.get("measure"), *map(str, data))


def find(path: Path) -> list[Run]:
    """Return the run in a folder, or the finished jobs of a sweep.

    Raises:
        UserError: there are none.
    """
    if (path / "summary.json").is_file():
        return [_read(path)]
    found = [
        _read(each.parent) for each in sorted(path.glob("*/summary.json"), key=lambda each: _by_number(each.parent))
    ]
    if not found:
        raise UserError(f"{path}: no finished run there (no summary.json), and no sweep of such", *missing(path))
    return found


def missing(path: Path) -> list[str]:
    """Return which jobs of a sweep failed or are not finished: their number, then a line for each."""
    jobs = {each.parent for each in path.glob(f"*/{REASON}")} | {each.parents[1] for each in path.glob(f"*/{SETTINGS}")}
    lines = [line for job in sorted(jobs, key=_by_number) if (line := _why_missing(job))]
    if not lines:
        return []
    more = [f"… and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return [f"{path}: {len(lines)} of {len(jobs)} jobs failed or are not finished", *lines[:LISTED], *more]


def _why_missing(job: Path) -> str | None:
    """Return why a job has no numbers, or only earlier ones; None where it is finished."""
    if (job / REASON).is_file():
        with (job / REASON).open(errors="backslashreplace") as file:
            return f"{job}: {writable(file.readline(LONGEST).strip())}"
    return None if (job / "summary.json").is_file() else f"{job}: not finished"


def _by_number(job: Path) -> tuple[bool, int, str]:
    name = job.name
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _read(folder: Path) -> Run:
    settings, evaluation = stored(folder), folder / "evaluation.json"
    numbers = read_object(folder / "summary.json")
    numbers |= read_object(evaluation) if evaluation.is_file() else {}
    return Run(folder, flat(settings), numbers)
