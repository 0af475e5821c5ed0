"""Arrays saved by numpy, read without running anything that is in them and without filling memory."""

from __future__ import annotations

import math
import warnings
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vae_cli.data.batches.mapped import SMALL
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.machine import free_memory


def read(key: str, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return `x` and `y` of a file; a large .npy as the memory map that it is."""
    content = contents(key, path, "x")
    if "x" not in content and len(content) != 1:
        raise UserError(f"{key}={path}: holds {', '.join(content) or 'nothing'}; examples must be under `x`")
    x, y = content["x"] if "x" in content else next(iter(content.values())), content.get("y")
    if not all(isinstance(part, np.ndarray) for part in (x, y) if part is not None):
        raise UserError(f"{key}={path}: `x` or `y` in it is no array; arrays saved by numpy are allowed")
    return x, y


def contents(key: str, path: Path, name: str) -> dict[str, Any]:
    """Return the arrays of an .npz, or that of an .npy under a name: a large one as the memory map that it is.

    Raises:
        UserError: there is none, it is damaged, or it would not fit into memory; the line begins with the key.
    """
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file; an .npz or .npy file is allowed")
    with path.open("rb") as file:
        if not file.read(6).startswith((b"PK", b"\x93NUMPY")):
            raise UserError(f"{key}={path}: no NumPy file; an .npz or .npy (numpy.savez, numpy.save) is allowed")
        file.seek(0)
        try:
            if path.stat().st_size > SMALL and not zipfile.is_zipfile(file):
                return {name: np.load(path, mmap_mode="c", allow_pickle=False)}
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old headers are read all the same
                _refuse_a_flood(key, path, file)
                loaded: Any = np.load(file, allow_pickle=False)
                return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {name: loaded}
        except UserError:
            raise
        except Exception as error:
            reason = f"damaged or cut short: {first_line(error)}"
            if "pickle" in str(error):
                reason = "it holds Python objects, which are never unpickled; save numbers or strings, y.astype(str)"
            raise UserError(f"{key}={path}: cannot be read ({reason})") from None


def _refuse_a_flood(key: str, path: Path, file: BinaryIO) -> None:
    """Refuse arrays that would not fit into memory, by what their headers claim, before anything is inflated."""
    claimed = 0
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as inner:
                    claimed += max(member.file_size, _claimed(inner))
    else:
        file.seek(0)
        claimed = _claimed(file)
    file.seek(0)
    free = free_memory()
    if claimed > free:
        raise UserError(
            f"{key}={path}: its arrays need {claimed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free; "
            "a single array saved as .npy (numpy.save) is read in place"
        )


def _claimed(file: Any) -> int:
    """Return the bytes that an array's header claims, 0 where there is no header."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError:
        return 0
    return math.prod(shape) * dtype.itemsize
