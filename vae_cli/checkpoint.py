"""State to disk and back, atomically. Nothing but tensors and plain containers: `weights_only=True` reads it all."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from vae_cli.errors import UserError, first_line

FORMAT = 1


def save(state: dict[str, Any], path: Path) -> None:
    """Write a state to a temporary file beside `path`, flush it to disk, and rename it: whole, or not at all.

    Raises:
        UserError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: the checkpoint cannot be written ({first_line(error)})") from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state that `save` wrote; executes nothing that the file might hold.

    Raises:
        UserError: there is no such file, or it is no whole checkpoint of this format.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a whole checkpoint (damaged, cut short or something else)") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    return state
