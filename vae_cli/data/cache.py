"""What was decoded once is read the next time: arrays in a folder of the user's, named by all that they depend on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def folder() -> Path:
    """Return VAE_CACHE, else vae-cli in the user's cache folder; where there is no home, in the temporary one."""
    if own := os.environ.get("VAE_CACHE"):
        return Path(own)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "vae-cli"
    try:
        return Path.home() / ".cache" / "vae-cli"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "vae-cli"


def cached(source: Iterable[object], make: Callable[[], Tensor]) -> Tensor:
    """Return what `make` returns, uint8 [N, …], read from the cache where an equal source left it there.

    Args:
        source: everything it depends on, as text: files with their sizes and times, settings.
        make: decodes it.
    """
    key = hashlib.sha256("\n".join(map(str, source)).encode()).hexdigest()[:32]
    path = folder() / f"{key}.npy"
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError):  # not there, or cut short
        made = make()
    with contextlib.suppress(OSError):  # a full or read-only disk costs time, not the run
        _write(path, made.numpy())
    return made


def _write(path: Path, array: np.ndarray) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def stamp(file: Path) -> str:
    """Return a file's name, size and time of change: what tells an edited file from the one that was read."""
    status = file.stat()
    return f"{file.absolute()}|{status.st_size}|{status.st_mtime_ns}"
