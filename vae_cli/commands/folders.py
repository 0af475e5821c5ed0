"""Run folders: which are free, which hold a run, and what is written there before training. No torch."""

from __future__ import annotations

import contextlib
from itertools import count
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vae_cli.system.disk import read_object, write
from vae_cli.system.errors import UserError
from vae_cli.system.output import shell_assignment


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a checkpoint to go on from."""
    return any((folder / "checkpoints" / name).is_file() for name in ("last.pt", "previous.pt"))


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None of one that is not, or whose summary is damaged."""
    try:
        found = read_object(folder / "summary.json")
    except UserError:
        return None
    return found if "train/elbo" in found else None


def claim(folder: Path, *, chosen: bool) -> Path:
    """Take a folder that no other run has: the given one, or, where nobody chose it, its next free neighbour.

    Raises:
        UserError: a chosen folder holds a run already.
    """
    for k in count(1):
        candidate = folder if k == 1 else folder.with_name(f"{folder.name}-{k}")
        try:
            (candidate / ".hydra").mkdir(parents=True)
        except FileExistsError:
            if chosen:
                raise UserError(f"hydra.run.dir={folder}: holds a run already{_advice(folder)}") from None
        else:
            return candidate
    raise AssertionError("count() does not end")


def _advice(folder: Path) -> str:
    if is_saved(folder):
        return f"; go on with {shell_assignment('resume', folder)}, or choose another folder"
    return ", which saved nothing yet; begin it anew with resume=auto, or choose another folder"


def withdraw(folder: Path) -> None:
    """Give a claimed folder up, where the run was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        (folder / ".hydra").rmdir()  # it is empty until the run's settings are written
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()


def record(folder: Path, settings: dict[str, Any], overrides: list[str]) -> None:
    """Write the settings a run was accepted with, resolved, and what was typed to get them, resumptions included.

    Args:
        folder: of the run.
        settings: of all groups.
        overrides: what was typed this time.
    """
    from vae_cli.config import typed

    given = dict.fromkeys([*typed(folder), *overrides])
    for name, content in (
        ("config", settings),
        ("overrides", [each for each in given if not each.startswith("resume=")]),
        ("hydra", {"hydra": OmegaConf.to_container(OmegaConf.structured(HydraConfig.get()))}),
    ):
        write(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))
