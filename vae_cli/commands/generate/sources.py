"""What a task works on: a split of the run's own data, or a person's own files, in the units the model knows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_cli.api import Trained
from vae_cli.config.types import ExistingPath, Split
from vae_cli.data import arrays, decoding, images, npy
from vae_cli.data.batches.mapped import SMALL
from vae_cli.data.inputs import SLACK, class_number
from vae_cli.report.pictures import is_picture, spread
from vae_cli.system.errors import UserError, first_line

MANY = 1000  # examples that a task takes at once
BYTE = 255  # the largest of a byte


class Examples:
    """Examples x [N, *shape] in the data's own range, with labels where there are any.

    Args:
        model: that they are given to.
        x: the examples.
        y: labels [N] or [N, A], or None.
        own: whether a person gave them, in an order of their own.
    """

    def __init__(self, model: Trained, x: Tensor, y: Tensor | None, *, own: bool = False):
        self.model, self.x, self.y, self.own = model, x, y, own

    def need_labels(self) -> None:
        """Raise where a conditional run is given examples without labels.

        Raises:
            UserError: it is.
        """
        if self.model.conditional and self.y is None:
            hint = "; task=anomaly scores them under every class" if self.model.spec.classes else ""
            raise UserError(f"task.source: the run is conditional and these examples have no labels{hint}")

    def __len__(self) -> int:
        return len(self.x)

    def some(self, n: int) -> list[int]:
        """Return the indices of n examples: the first of a person's own, a mix of a split, which may be sorted."""
        chosen = range(min(n, len(self))) if self.own else spread(len(self), self.y, n).tolist()
        return list(chosen)

    def at(self, indices: Sequence[int]) -> tuple[Tensor, Any]:
        """Return the examples at some indices, on the model's device."""
        which = torch.tensor(list(indices))
        device = self.model.device
        return self.x[which].to(device), None if self.y is None else self.y[which].to(device)

    def chosen(self, indices: Sequence[int], given: str) -> tuple[Tensor, Any]:
        """Return the examples that a setting names by their indices, on the model's device.

        Raises:
            UserError: there is no such example.
        """
        if (last := max(indices)) >= len(self):
            raise UserError(f"{given}: there is no example {last}; 0 to {len(self) - 1} are allowed")
        return self.at(indices)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Any]]:
        """Yield all examples in order, on the model's device."""
        for start in range(0, len(self), size):
            yield self.at(range(start, min(start + size, len(self))))


def examples_of(model: Trained, split: Split, source: ExistingPath | None) -> Examples:
    """Return a split of the run, or the examples of a file or folder of pictures.

    Raises:
        UserError: they do not fit the model.
    """
    if source is None:
        return Examples(model, *model.data(split))
    path = Path(source)
    if path.is_dir() or path.suffix.lower() in images.SUFFIXES:
        return Examples(model, _pictures(model, path), None, own=True)
    given = f"task.source={source}"
    x, labels = npy.read("task.source", path)
    if isinstance(x, np.memmap):
        raise UserError(f"{given}: larger than {SMALL // 2**20} MiB; a file of fewer examples is allowed")
    x = arrays.channels_first(given, x, labels)
    if x.shape[1:] != model.vae.shape:
        shape = list(model.vae.shape)
        raise UserError(f"{given}: examples of shape {list(x.shape[1:])}; {shape} is allowed")
    y, names = (None, None) if labels is None else arrays.named(given, labels)
    values = _binary(model, _in_own_range(model, x, given))
    return Examples(model, values, known_labels(model, y, names, given), own=True)


def _in_own_range(model: Trained, x: np.ndarray, given: str) -> Tensor:
    """Return the examples of a file in the range of the run's data, whatever is the largest value in the file.

    Raises:
        UserError: they are no numbers, or lie beyond that range.
    """
    if x.dtype.kind not in "uifb":
        raise UserError(f"{given}: examples of type {x.dtype}; numbers are allowed")
    with np.errstate(over="ignore"):
        values = torch.from_numpy(np.ascontiguousarray(x, np.float32))
    if values.isinf().any():
        raise UserError(f"{given}: infinity or beyond float32 in `x`; finite numbers are allowed")
    largest = _largest(model, x)
    there = values[~values.isnan()]  # a missing value lies in no range
    low, high = (float(there.min()), float(there.max())) if len(there) else (0.0, 0.0)
    if model.bounded and not (low >= -SLACK and high <= largest + SLACK):
        whole = f"integers 0 … {_levels(model) - 1}" if _levels(model) > 2 else "integers 0 and 1, bytes"
        raise UserError(f"{given}: values from {low:g} to {high:g}; {whole} or fractions in [0, 1] are allowed")
    return values / largest


def _largest(model: Trained, x: np.ndarray) -> int:
    """Return the integer in a file that stands for the run's 1: its largest grey level, of bytes 255 where it has none.

    Fractions, and values that have no range, stand for themselves.
    """
    if x.dtype.kind not in "ui" or not model.bounded:
        return 1
    if _levels(model) > 2:
        return _levels(model) - 1
    return BYTE if x.dtype == np.uint8 and x.max() > 1 else 1


def _levels(model: Trained) -> int:
    """Return the number of grey levels of a run's data, 2 where they have none."""
    return model.spec.levels or model.spec.dequantized or 2


def known_labels(model: Trained, y: Tensor | None, names: Sequence[str] | None, given: str) -> Tensor | None:
    """Return labels y [N], which count the given class names, as the run counts its own; attributes stay as they are.

    Raises:
        UserError: the run is conditional and does not know such a class.
    """
    own = model.spec.names
    if y is None or names is None or own is None:
        return y
    try:
        return torch.tensor([class_number(own, name, given) for name in names])[y]
    except ValueError as error:
        if model.conditional:
            raise UserError(str(error)) from None
        return y


@contextmanager
def _told_of(key: str) -> Iterator[None]:
    """Tell of a file under the key that it was given by: those who read a run's own data know data.path alone."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"^data\.path\b", key, str(error))) from None


def _pictures(model: Trained, path: Path) -> Tensor:
    shape = model.vae.shape
    if not is_picture(shape):
        raise UserError(f"task.source={path}: the run's examples of shape {list(shape)} are no pictures")
    chosen = sorted(f for f in path.rglob("*") if f.suffix.lower() in images.SUFFIXES) if path.is_dir() else [path]
    if not chosen:
        raise UserError(f"task.source={path}: no pictures in it")
    for note in images.not_read(path):
        print(f"warning: {note}", file=sys.stderr)
    colour = len(shape) == 3 and shape[0] == 3
    with _told_of("task.source"):
        resize = getattr(model.config.data, "resize", "crop")
        decoded = decoding.decode(chosen, (shape[-2], shape[-1]), "RGB" if colour else "L", resize=resize)
    x = decoded.to(torch.device("cpu")).float() / BYTE
    return _binary(model, x.view(len(x), *shape))


def _binary(model: Trained, x: Tensor) -> Tensor:
    """Return 0 or 1 where the model knows nothing else: grey values are cut at one half."""
    return torch.where(x.isnan(), x, (x > 0.5).float()) if model.spec.binary else x


def read_codes(path: str, model: Trained) -> tuple[Tensor, Tensor | None]:
    """Return flat codes z [N, D] and labels of an .npz (`z`, `y`) or .npy.

    Raises:
        UserError: the file cannot be read, or its codes do not fit the model.
    """
    given = f"task.codes={path}"
    content = npy.contents("task.codes", Path(path), "z")
    if not isinstance(content.get("z"), np.ndarray):
        raise UserError(f"{given}: holds {', '.join(content) or 'nothing'}; codes must be under `z`")
    z = _codes(given, content["z"], model)
    if not model.conditional:
        return z.to(model.device), None
    if "y" not in content:
        raise UserError(f"{given}: the run is conditional; labels `y` are needed beside the codes")
    y, names = arrays.named(given, np.asarray(content["y"]))
    if len(y) != len(z):
        raise UserError(f"{given}: {len(z)} codes in `z` but {len(y)} labels in `y`; the counts must be equal")
    labels = known_labels(model, y, names, given)
    assert labels is not None
    return z.to(model.device), labels.to(model.device)


def _codes(given: str, z: np.ndarray, model: Trained) -> Tensor:
    """Return codes, flat or in their own shape, as float32 [N, D].

    Raises:
        UserError: they have another shape or type, or are not finite.
    """
    shape, dimensions = model.code_shape, model.latent_dim
    if z.shape[1:] not in ((dimensions,), shape) or len(z) == 0:
        own = f" or [N, {', '.join(map(str, shape))}]" if len(shape) > 1 else ""
        raise UserError(f"{given}: codes of shape {list(z.shape)}; [N, {dimensions}]{own} with N ≥ 1 is allowed")
    if z.dtype.kind not in "uif":
        raise UserError(f"{given}: codes of type {z.dtype}; numbers are allowed")
    with np.errstate(over="ignore"):
        codes = np.asarray(z, np.float32)
    if not (finite := np.isfinite(codes).all(1)).all():
        first = f"first in code {int(finite.argmin())}"
        raise UserError(f"{given}: NaN, infinity or beyond float32 in `z` ({first}); finite numbers are allowed")
    return torch.from_numpy(codes.reshape(len(z), dimensions))


def read_mask(mask: str, model: Trained, n: int) -> Tensor:
    """Return which elements are known, bool [n, *shape]: of a file (true or white: known), or half of a picture.

    left, right, top and bottom are the missing half; random misses each element with probability one half.
    """
    shape = model.vae.shape
    if mask == "random":
        return torch.rand(n, *shape) > 0.5
    known = torch.ones(shape, dtype=torch.bool)
    if mask in ("left", "right", "top", "bottom"):
        if not is_picture(shape):
            raise UserError(f"task.mask={mask}: the run's examples are no pictures; random or a file is allowed")
        side = -1 if mask in ("left", "right") else -2
        half = shape[side] // 2
        start = 0 if mask in ("left", "top") else half
        known.narrow(side, start, half if start == 0 else shape[side] - half).fill_(False)
        return known.expand(n, *shape)
    return _mask_file(mask, model).expand(n, *shape)


def _mask_file(mask: str, model: Trained) -> Tensor:
    shape, path = model.vae.shape, Path(mask)
    if path.suffix.lower() in images.SUFFIXES:
        with _told_of("task.mask"):
            return decoding.decode([path], (shape[-2], shape[-1]), "L")[:1][0, 0].gt(127).expand(shape)
    content = npy.contents("task.mask", path, "mask")
    if len(content) != 1:
        raise UserError(f"task.mask={mask}: holds {', '.join(content) or 'nothing'}; one array is allowed")
    (found,) = content.values()
    try:
        return torch.from_numpy(np.array(found, bool)).expand(shape)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"task.mask={mask}: no mask of shape {list(shape)} ({first_line(error)})") from None
