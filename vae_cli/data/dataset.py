"""A source and its settings become a data set: split, checked against the likelihood, transformed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from typing import Any

import torch

from vae_cli import config as settings
from vae_cli.data import pixels
from vae_cli.data.examples import Examples, Splits, carve
from vae_cli.data.resident import Resident
from vae_cli.errors import UserError


@dataclass(frozen=True)
class Spec:
    """What the parts need to know of the data as the model sees them.

    `shape` of one example; `levels` L where values are k / (L − 1), else None; `low` and `high` bound the values;
    `classes` or `attributes` count the labels; `dequantized` data have `levels` None and carry the L they came
    from in `dequantized`.
    """

    shape: tuple[int, ...]
    levels: int | None
    low: float
    high: float
    classes: int | None = None
    attributes: int | None = None
    dequantized: int | None = None

    @property
    def size(self) -> int:
        """The number of elements of one example, D."""
        return prod(self.shape)

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return self.levels == 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return asdict(self) | {"shape": list(self.shape)}


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test examples that never overlap, with their transforms."""

    spec: Spec
    train: Examples
    valid: Examples | None
    test: Examples | None
    levels: int | None  # of the training examples as they are stored
    kind: str  # the transform of a training batch

    def resident(self, split: str, device: torch.device) -> Resident | None:
        """Return a split on the device, or None where there is none."""
        examples = getattr(self, split)
        if examples is None:
            return None
        stored = self.levels if split == "train" else self.spec.levels
        kind = self.kind if split == "train" else "scale"
        return Resident(examples, pixels.transform(kind, stored), device)

    def fixed_train(self, device: torch.device, most: int, seed: int) -> Resident:
        """Return the first `most` training examples as an evaluation sees them: every random draw made once."""
        part = fix(self.train[slice(0, most)], self.kind, self.levels, seed)
        return Resident(part, pixels.transform("scale", self.spec.levels), device)


def load(part: settings.Data, source: Splits, *, support: str, likelihood: str) -> Dataset:
    """Split a source by its settings and make it fit the support (binary, unit, levels or real) of a likelihood."""
    splits = carve(source, valid=part.valid, test=part.test, seed=part.seed)
    if len(splits.train) == 0:
        raise UserError("data: no training examples")
    if part.limit is not None:
        splits = Splits(splits.train[slice(0, part.limit)], splits.valid, splits.test, splits.levels, splits.classes)
    raw = _describe(splits)
    kind, spec = _choose(part, raw, support)
    frozen = kind if kind != "static" else "bernoulli"
    fixed = partial(fix, kind=frozen, levels=raw.levels)
    train, train_kind, train_levels = splits.train, kind, raw.levels
    if kind in ("static", "threshold"):
        train, train_kind, train_levels = fixed(splits.train, seed=part.seed), "scale", 2
    valid = splits.valid and fixed(splits.valid, seed=part.seed + 1)
    test = splits.test and fixed(splits.test, seed=part.seed + 2)
    _check_support(spec, support, likelihood)
    return Dataset(spec, train, valid, test, train_levels, train_kind)


def fix(examples: Examples, kind: str, levels: int | None, seed: int) -> Examples:
    """Apply a transform once and for all, with its own seed; binary results are stored as uint8."""
    if kind == "scale":
        return examples
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = pixels.transform(kind, levels)(examples.x)
    return Examples(x if kind == "dequantize" else x.to(torch.uint8), examples.y)


def _describe(splits: Splits) -> Spec:
    x, y = splits.train.x, splits.train.y
    if x.dtype == torch.uint8:
        if splits.levels is None:
            raise UserError("data: a source of uint8 examples must say how many levels they have")
        levels, low, high = splits.levels, 0.0, 1.0
    else:
        parts = [part.x for part in (splits.train, splits.valid, splits.test) if part is not None]
        low, high = min(float(part.min()) for part in parts), max(float(part.max()) for part in parts)
        levels = None
    attributes = y.shape[1] if y is not None and y.ndim == 2 else None
    return Spec(tuple(x.shape[1:]), levels, low, high, splits.classes, attributes)


def _choose(part: settings.Data, raw: Spec, support: str) -> tuple[str, Spec]:
    """Return the transform of a training batch and what the model sees after it."""
    unit = raw.low >= 0.0 and raw.high <= 1.0
    binarize = part.binarize
    if binarize == "auto":
        binarize = "dynamic" if support == "binary" and unit and not raw.binary else "none"
    if binarize != "none":
        if not unit:
            raise UserError(
                f"data.binarize={part.binarize}: values run from {raw.low:g} to {raw.high:g}; "
                "only data in [0, 1] can be binarised"
            )
        if raw.binary:
            raise UserError(
                f"data.binarize={part.binarize}: has no effect, the data are binary; auto or none is allowed"
            )
        kind = {"dynamic": "bernoulli", "static": "static", "threshold": "threshold"}[binarize]
        return kind, Spec(raw.shape, 2, 0.0, 1.0, raw.classes, raw.attributes)
    if part.dequantize:
        if raw.levels is None:
            raise UserError("data.dequantize=true: has no effect on floating-point data; it is for integer grey levels")
        return "dequantize", Spec(raw.shape, None, 0.0, 1.0, raw.classes, raw.attributes, raw.levels)
    return "scale", raw


def _check_support(spec: Spec, support: str, likelihood: str) -> None:
    given = f"likelihood={likelihood}: the data's values run from {spec.low:g} to {spec.high:g}"
    if support in ("binary", "unit") and not (spec.low >= 0.0 and spec.high <= 1.0):
        raise UserError(f"{given}; values in [0, 1] are allowed (Gaussian and Laplace take any)")
    if support == "levels" and spec.levels is None:
        raise UserError(f"{given} without being grey levels; integers in 0 … 255 are allowed")
