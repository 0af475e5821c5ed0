"""A user's own files: arrays and pictures."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from torch import Tensor

from vae_cli.config.types import ExistingPath
from vae_cli.data.batches.mapped import CHUNK, SMALL, Mapped
from vae_cli.data.examples import Examples, Splits
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.machine import free_memory

CHANNELS = (1, 3, 4)  # how many a picture has
DARK = 32  # the largest of bytes below which they are hardly pictures of 8 bits
MANY = 20  # classes that labels may be without a question
PER_CLASS = 5  # labels of a class, on average, below which whole numbers are hardly classes


def arrays(*, path: ExistingPath, labels: str | None, missing: Literal["refused", "observed"]) -> Splits:
    """Return the examples of an .npz (`x`, `y`) or .npy, with the labels of another .npy: [N, *shape].

    An .npz may name the columns of a table: `features`.

    A large .npy is read in place, a batch at a time. Bytes are 256 grey levels (2 where no value exceeds 1); other
    whole numbers 0 … 255 shaped like pictures are as many as their largest needs; anything else becomes float32.
    Channels may come last. Labels are classes (integers) or attribute vectors (two dimensions).
    """
    x, y = read("data.path", Path(path))
    if labels is not None:
        if y is not None:
            raise UserError(f"data.labels={labels}: has no effect, {path} holds labels `y`; null is allowed")
        y, _ = read("data.labels", Path(labels))
    x = channels_first(f"data.path={path}", x, y)
    holes = missing == "observed"
    examples, levels = _in_place(path, x) if isinstance(x, np.memmap) and not holes else _in_memory(path, x, holes)
    found, names = (None, None) if y is None else named(f"data.path={path}", y)
    notes = (*_notes_on_bytes(x.dtype, examples, levels), *_notes_on_labels(y, names))
    features, whole = _feature_names(Path(path), x.shape[1:]), is_whole(x.dtype, levels)
    return Splits(Examples(examples, found), None, None, levels, names, features, whole, notes)


def _notes_on_bytes(dtype: np.dtype, examples: Tensor | Mapped, levels: int | None) -> list[str]:
    """Return a warning if bytes are hardly grey levels of 0 … 255: codes of categories, or pictures of fewer levels."""
    largest = examples.bounds()[1] if isinstance(examples, Mapped) else float(examples.max())
    if dtype != np.uint8 or levels != 256 or largest >= DARK:
        return []
    others = "their own levels" if _like_a_picture(examples.shape[1:]) else "values of their own"
    return [
        f"bytes are grey levels of 255, but none exceeds {largest:.0f}, so that all are nearly black: "
        f"saved as another type (x.astype('int64')) they are {others}"
    ]


def _notes_on_labels(y: np.ndarray | None, names: Sequence[str] | None) -> list[str]:
    """Return a warning if numbers that were taken for classes may be values to predict."""
    if y is None or names is None or y.dtype.kind not in "uif":
        return []
    most = MANY if y.dtype.kind == "f" else max(MANY, len(y) / PER_CLASS)
    if len(names) <= most:
        return []
    return [
        f"labels `y` are {len(names)} different numbers, taken for as many classes: "
        "where they are values, y[:, None] makes them an attribute"
    ]


def _feature_names(path: Path, shape: tuple[int, ...]) -> tuple[str, ...] | None:
    """Return the names of the columns of a table, where an .npz holds them as `features`.

    Raises:
        UserError: they are no names, or not one for each column.
    """
    if not zipfile.is_zipfile(path):
        return None
    with np.load(path, allow_pickle=False) as archive:
        if "features" not in archive.files:
            return None
        found = archive["features"]
    if found.dtype.kind not in "US" or found.shape != shape:
        given = f"`features` of shape {_shown(found.shape)} and type {found.dtype}"
        raise UserError(f"data.path={path}: {given}; one name for each of the columns {_shown(shape)} is allowed")
    return tuple(map(str, found.astype(str)))


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


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def channels_first(given: str, x: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    """[N, H, W, C] → [N, C, H, W], if the last axis must be the channels.

    Raises:
        UserError: there are no examples, or more or fewer labels than examples.
    """
    if x.ndim < 2 or 0 in x.shape:
        raise UserError(f"{given}: examples of shape {_shown(x.shape)}; [N, …] with N ≥ 1 and one axis more is allowed")
    if y is not None and y.shape[:1] != x.shape[:1]:
        count = len(y) if y.ndim else 0
        raise UserError(f"{given}: {len(x)} examples in `x` but {count} labels in `y`; the counts must be equal")
    last = x.ndim == 4 and x.shape[-1] in CHANNELS and x.shape[1] not in CHANNELS
    return np.moveaxis(x, -1, 1) if last else x


def levels_of(dtype: np.dtype, shape: Sequence[int], low: float, high: float) -> int | None:
    """Return the number of grey levels of examples [*shape] from `low` to `high`; None where values are their own.

    Bytes are grey levels, in any shape. Other whole numbers are grey levels where they are 0 … 255 and examples are
    shaped like pictures; a table of them (ages, counts, codes) holds values of its own. 0 and 1 are 0 and 1.
    """
    if dtype.kind not in "bui" or low < 0:
        return None
    if high <= 1:
        return 2
    if dtype == np.uint8:
        return 256
    return int(high) + 1 if high <= 255 and _like_a_picture(shape) else None


def _like_a_picture(shape: Sequence[int]) -> bool:
    """Whether examples are [H, W] or [C, H, W], with sides of more than one."""
    return (len(shape) == 2 or (len(shape) == 3 and shape[0] in CHANNELS)) and min(shape[-2:]) > 1


def is_whole(dtype: np.dtype, levels: int | None) -> bool:
    """Whether examples are whole numbers, so that the run reports how they were taken."""
    return dtype.kind in "ui" and dtype != np.uint8 and levels != 2


def _in_memory(path: str, x: np.ndarray, holes: bool = False) -> tuple[Tensor, int | None]:
    """Return the examples, uint8 where they have grey levels and float32 where not, and how many levels.

    `holes` says that NaN stands for a missing value.
    """
    _refuse_text(path, x)
    levels = levels_of(x.dtype, x.shape[1:], float(x.min()), float(x.max()))
    if levels is None and ((x == 0) | (x == 1)).all():
        levels = 2
    if levels is not None:
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8)), levels
    _refuse_coarse(path, x)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(np.where(np.isnan(x), 0.0, values) if holes else values).all():
        _refuse_infinite(path, np.where(np.isnan(x), 0.0, values) if holes else values, 0)
    return torch.from_numpy(values), None


def _refuse_text(path: str, x: np.ndarray) -> None:
    if x.dtype.kind not in "buif":
        raise UserError(f"data.path={path}: examples of type {x.dtype}; numbers are allowed")


def _refuse_coarse(path: str, x: np.ndarray) -> None:
    """Refuse numbers that vary by less about their mean than float32 tells apart: times since 1970, say."""
    if x.dtype.itemsize <= 4 or len(x) < 2 or not np.isfinite(x).all():
        return
    with np.errstate(over="ignore", invalid="ignore"):
        size, spread = np.abs(x).max(0).astype(np.float64).ravel(), x.std(0, dtype=np.float64).ravel()
    coarse = (spread > 1e-12 * size) & (2.0**-24 * size > 0.01 * spread)
    if coarse.any():
        k = int(coarse.argmax())
        raise UserError(
            f"data.path={path}: element {k} of `x` varies by {spread[k]:.3g} where it comes to {size[k]:.10g}, "
            "less than float32 tells apart; subtract its mean"
        )


def _in_place(path: str, x: np.ndarray) -> tuple[Mapped, int | None]:
    """As `_in_memory`, without reading more of the file than tells what it holds, and no more than a part at a time."""
    x = np.asarray(x)
    _refuse_text(path, x)
    low, high, binary = (0.0, 1.0, True) if x.dtype.kind == "b" else _range(path, x)
    levels = 2 if binary else levels_of(x.dtype, x.shape[1:], low, high)
    return Mapped(x, torch.float32 if levels is None else torch.uint8, (low, high)), levels


def _range(path: str, x: np.ndarray) -> tuple[float, float, bool]:
    """Return the least and the largest value of an array in a file, and whether all are 0 or 1.

    Raises:
        UserError: not all are finite.
    """
    low, high, binary = math.inf, -math.inf, True
    many = max(1, CHUNK // (x[0].size * 4))
    for start in range(0, len(x), many):
        part = x[start : start + many]
        with np.errstate(over="ignore"):
            part = part.astype(np.float32, copy=False) if x.dtype.kind == "f" else part
        least, largest = float(part.min()), float(part.max())
        if not math.isfinite(least + largest):
            _refuse_infinite(path, part, start)
        low, high = min(low, least), max(high, largest)
        binary = binary and low >= 0 and high <= 1 and bool(((part == 0) | (part == 1)).all())
        if x.dtype == np.uint8 and high >= DARK:
            return 0.0, 255.0, False  # grey levels: the rest tells nothing
    return low, high, binary


def _refuse_infinite(path: str, values: np.ndarray, first: int) -> None:
    bad = first + int((~np.isfinite(values)).reshape(len(values), -1).any(1).argmax())
    hint = ", or NaN for missing ones with data.missing=observed" if np.isnan(values).any() else ""
    raise UserError(
        f"data.path={path}: NaN, infinity or beyond float32 in `x` (first in example {bad}); "
        f"finite numbers{hint} are allowed"
    )


def named(given: str, y: np.ndarray) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return labels and the names of their classes, in sorted order; attributes have none."""
    if y.dtype.kind == "f" and y.ndim == 1 and (np.abs(y) < 2**53).all() and (y == np.round(y)).all():
        y = y.astype(np.int64)
    if y.dtype.kind in "uibUS" and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1 and y.dtype.kind in "uibUS":
        names, y = np.unique(y, return_inverse=True)
        return torch.from_numpy(y).long(), tuple(map(str, names))
    if y.ndim == 2 and y.dtype.kind in "uifb" and np.isfinite(y.astype(np.float32)).all():
        return torch.from_numpy(y.astype(np.float32)), None
    raise UserError(
        f"{given}: labels `y` of shape {_shown(y.shape)} and type {y.dtype}; "
        "classes [N] (whole numbers or names) or finite attributes [N, A] are allowed"
    )
