"""Arrays in a folder of the user's: what was decoded once and is read the next time, and what memory would not hold.

The former are named by all that they depend on; the latter have no name and end with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from vae_cli.data.batches.mapped import SMALL, Mapped, reserve
from vae_cli.system.disk import Unwritable, whole, write
from vae_cli.system.errors import UserError


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


def cached(source: Iterable[object], shape: Sequence[int], fill: Callable[[Tensor], None]) -> Tensor | Mapped:
    """Return an array of bytes [N, …], read from the cache where an equal source left it there, else filled and kept.

    Args:
        source: everything it depends on, as text: files with their sizes and times, settings.
        shape: of the array.
        fill: writes all of it.
    """
    path = folder() / f"{_key(source)}.npy"
    try:
        return opened(path)
    except (OSError, ValueError, EOFError):  # not there, or cut short
        pass
    try:
        with _writing(path, shape) as x:
            fill(x)
        return opened(path)
    except (OSError, Unwritable):  # a full or read-only disk costs time, not the run
        x = empty(shape, torch.uint8)
        fill(x)
        return x


def remembered(source: Iterable[object], find: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return plain values that are found once and then read from the cache."""
    path = folder() / f"{_key(source)}.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        found = find()
    with contextlib.suppress(OSError, Unwritable):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, json.dumps(found), _mark())
    return found


def _key(source: Iterable[object]) -> str:
    return hashlib.sha256("\n".join(map(str, source)).encode()).hexdigest()[:32]


def opened(path: Path) -> Tensor | Mapped:
    """Return the bytes of an .npy: in memory, or, where they are many, in their file."""
    array = np.asarray(np.load(path, mmap_mode="c", allow_pickle=False))
    return torch.from_numpy(np.array(array)) if array.nbytes <= SMALL else Mapped(array, torch.uint8, (0.0, 255.0))


@contextmanager
def _writing(path: Path, shape: Sequence[int]) -> Iterator[Tensor]:
    """Yield an array that is being written to a file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear(path)
    with whole(path, _mark()) as partial:
        array = open_memmap(partial, mode="w+", dtype=np.uint8, shape=tuple(shape))
        with partial.open("rb+") as file:
            reserve(file.fileno(), partial.stat().st_size)
        yield torch.from_numpy(np.asarray(array))
        array.flush()


def _mark() -> str:
    """Return the part of a file name that marks this process's files in a cache."""
    return f".{platform.node()}.{os.getpid()}"


def _clear(path: Path) -> None:
    """Remove what processes of this machine that were killed have left of a file."""
    for left in path.parent.glob(f"{path.name}.{platform.node()}.*.partial"):
        number = left.name.split(".")[-2]
        if number.isdecimal() and not Path("/proc", number).exists() and Path("/proc/self").exists():
            left.unlink(missing_ok=True)


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor: in memory, or, where it is large, in a file that ends with the process.

    Raises:
        UserError: there is no room for the file.
    """
    size = math.prod(shape)
    if size * dtype.itemsize <= SMALL:
        return torch.empty(*shape, dtype=dtype)
    place = folder()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place, suffix=".partial") as file:  # its pages live on without its name
            reserve(file.fileno(), size * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(*shape)
    except OSError as error:
        raise UserError(
            f"VAE_CACHE={place}: {size * dtype.itemsize / 2**30:.1f} GiB cannot be kept there ({error.strerror}); "
            "a folder with room for them is allowed"
        ) from error


def stamp(file: Path) -> str:
    """Return a file's name, size and time of change: an edited file differs in them."""
    status = file.stat()
    return f"{file.absolute()}|{status.st_size}|{status.st_mtime_ns}"
