"""A user's own arrays: option data=arrays."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vae_cli.config.types import ExistingPath
from vae_cli.data.batches.mapped import CHUNK, Mapped
from vae_cli.data.examples import Examples, Splits
from vae_cli.data.levels import CHANNELS, is_whole, levels_of, like_a_picture
from vae_cli.data.npy import read
from vae_cli.system.errors import UserError

DARK = 32  # the largest of bytes below which they are hardly pictures of 8 bits
MANY = 20  # classes that labels may be without a question
PER_CLASS = 5  # labels of a class, on average, below which whole numbers are hardly classes


def arrays(*, path: ExistingPath, labels: str | None, missing: Literal["refused", "observed"]) -> Splits:
    """Return the examples of an .npz (`x`, `y`) or .npy, with the labels of another .npy: [N, *shape].

    An .npz may name the columns of a table: `features`.

    A large .npy is read in place, a batch at a time. Bytes are 256 grey levels (2 where no value exceeds 1); other
    whole numbers 0 … 255 shaped like pictures are as many as their largest needs; anything else becomes float32.
    Channels may come last. Labels are classes (integers) or attribute vectors (two dimensions). With
    missing=observed NaN stands for a missing value; such a file is read into memory.
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
    others = "their own levels" if like_a_picture(examples.shape[1:]) else "values of their own"
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


def _in_memory(path: str, x: np.ndarray, holes: bool = False) -> tuple[Tensor, int | None]:
    """Return the examples, uint8 where they have grey levels and float32 where not, and how many levels.

    `holes` says that NaN stands for a missing value; examples with such are float32, binary ones as well.
    """
    _refuse_text(path, x)
    missing = np.isnan(x) if holes and x.dtype.kind == "f" else np.zeros((), bool)
    if missing.any():
        _refuse_empty_rows(path, missing)
    levels = levels_of(x.dtype, x.shape[1:], float(x.min()), float(x.max()))
    if levels is None and ((x == 0) | (x == 1) | missing).all():
        levels = 2
    if levels is not None and not missing.any():
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8)), levels
    _refuse_coarse(path, x)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(x, dtype=np.float32)
    if not (np.isfinite(values) | missing).all():
        _refuse_infinite(path, np.where(missing, 0.0, values), 0, holes=holes)
    return torch.from_numpy(values), levels


def _refuse_empty_rows(path: str, missing: np.ndarray) -> None:
    empty = missing.reshape(len(missing), -1).all(1)
    if empty.any():
        raise UserError(
            f"data.path={path}: example {int(empty.argmax())} holds no value at all (one of {empty.sum()} such); "
            "examples with at least one are allowed"
        )


def _refuse_text(path: str, x: np.ndarray) -> None:
    if x.dtype.kind not in "buif":
        raise UserError(f"data.path={path}: examples of type {x.dtype}; numbers are allowed")


def _refuse_coarse(path: str, x: np.ndarray) -> None:
    """Refuse numbers that vary by less about their mean than float32 tells apart: times since 1970, say."""
    if x.dtype.itemsize <= 4 or len(x) < 2 or np.isinf(x).any():
        return
    if np.isnan(x).any():  # missing values vary by nothing
        x = np.where(np.isnan(x), np.ma.masked_invalid(x).mean(0).filled(0.0), x)
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


def _refuse_infinite(path: str, values: np.ndarray, first: int, *, holes: bool = False) -> None:
    bad = first + int((~np.isfinite(values)).reshape(len(values), -1).any(1).argmax())
    hint = ", or NaN for missing ones with data.missing=observed," if np.isnan(values).any() else ""
    given, hint = ("infinity", " and NaN") if holes else ("NaN, infinity", hint)
    raise UserError(
        f"data.path={path}: {given} or beyond float32 in `x` (first in example {bad}); finite numbers{hint} are allowed"
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
