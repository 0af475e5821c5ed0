"""A source and its settings become a data set: split, standardised, transformed, checked against the likelihood."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vae_cli.config.types import Amount, Count, Seed
from vae_cli.data.batches import pixels
from vae_cli.data.batches.cache import empty
from vae_cli.data.batches.resident import Resident, place
from vae_cli.data.batches.stream import Stream
from vae_cli.data.examples import Examples, Feed, Splits, carve
from vae_cli.data.spec import Spec
from vae_cli.likelihood.support import Support
from vae_cli.system.errors import UserError

WATCHED = 64  # examples of each split that are compared when a run finds its data again


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test examples that never overlap, with their transforms."""

    spec: Spec
    train: Examples | Feed
    valid: Examples | None
    test: Examples | None
    levels: int | None  # of the training examples as they are stored
    kind: str  # the transform of a training batch
    binarized: str | None = None  # how grey values became binary: bernoulli (anew for each batch), static, threshold
    taken: str | None = None  # what whole numbers that are no bytes were taken for
    notes: tuple[str, ...] = ()  # what a person must know of how the source was read

    @property
    def sizes(self) -> dict[str, int]:
        """The number of examples of each split there is."""
        return {split: len(part) for split, part in self._parts.items()}

    @property
    def most_held_out(self) -> int:
        """The number of examples of the larger of validation and test."""
        return max((n for split, n in self.sizes.items() if split != "train"), default=0)

    @property
    def examples(self) -> dict[str, list[float]]:
        """The means of some examples of each split and of their labels, by which changed data are known."""
        return {f"{split} examples": _means(part) for split, part in self._parts.items() if isinstance(part, Examples)}

    @property
    def _parts(self) -> dict[str, Examples | Feed]:
        parts = {"train": self.train, "valid": self.valid, "test": self.test}
        return {split: part for split, part in parts.items() if part is not None}

    def resident(self, split: str, device: torch.device, resident: bool | str = "auto") -> Resident | None:
        """Return a split for the device, or None where there is none; `resident` says where its examples shall be."""
        examples = getattr(self, split)
        if examples is None:
            return None
        kind, levels = (self.kind, self.levels) if split == "train" else ("scale", self.spec.levels)
        transform = pixels.transform(kind, levels)
        if isinstance(examples, Feed):
            return Stream(examples, transform, device, resident)
        return place(examples, transform, device, resident, missing=self.spec.missing)

    def fixed_train(self, device: torch.device, most: int, seed: int) -> Resident:
        """Return `most` training examples as an evaluation sees them: every random draw made once."""
        part = fix(self.train.some(most, seed), self.kind, self.levels, seed, missing=self.spec.missing)
        return place(part, pixels.transform("scale", self.spec.levels), device, missing=self.spec.missing)


def load(
    source: Splits,
    *,
    support: Support,
    option: str,
    binarize: Literal["auto", "dynamic", "static", "threshold", "none"],
    dequantize: bool,
    standardize: bool | Literal["auto"],
    valid: Amount | None,
    limit: Count | None,
    limit_train: Count | None,
    missing: Literal["refused", "observed"],
    seed: Seed,
    test: Amount | None = None,
) -> Dataset:
    """Split a source and make it fit the support of a likelihood; `option` is the likelihood's name.

    The settings are those that every option of data has: see conf/train.yaml. `test` is absent where the source brings
    its own test split.

    Raises:
        UserError: the source and its settings, or the likelihood, do not fit.
    """
    splits = limited(carve(source, valid=valid or 0, test=test, seed=seed), limit, limit_train, seed)
    if missing == "observed":
        splits = _with_missing(splits)
    described = replace(_describe(splits), features=splits.features, missing=missing == "observed")
    splits, raw = _standardize(standardize, splits, described, support)
    kind, spec = _choose(binarize, dequantize, raw, support)
    _check_support(spec, support, option)
    once = {"static": "bernoulli", "threshold": "threshold"}.get(kind)
    train = splits.train
    if once is not None:
        if isinstance(train, Feed):
            raise UserError(f"data.binarize={kind}: draws once, and a stream keeps nothing; dynamic or none is allowed")
        train = fix(train, once, raw.levels, seed, missing=raw.missing)
    valid_part, test_part = (
        each and fix(each, once or kind, raw.levels, seed + k, missing=raw.missing)
        for k, each in enumerate((splits.valid, splits.test), start=1)
    )
    how = kind if kind in ("bernoulli", "static", "threshold") else None
    taken = {(True, True): "real values", (True, False): "grey levels"}.get((splits.whole, raw.levels is None))
    kind, levels = ("scale", 2) if once else (kind, raw.levels)
    return Dataset(spec, train, valid_part, test_part, levels, kind, how, taken, splits.notes)


def limited(splits: Splits, limit: int | None, limit_train: int | None, seed: int) -> Splits:
    """Return splits of `limit` examples each at most, and of `limit_train` training examples, drawn at random."""
    every = math.inf if limit is None else limit
    train = min(every, math.inf if limit_train is None else limit_train)
    wanted = {"train": train, "valid": every, "test": every}
    chosen = {
        split: getattr(splits, split).some(int(most), seed)
        for split, most in wanted.items()
        if most < math.inf and getattr(splits, split) is not None
    }
    return replace(splits, **chosen)


def _with_missing(splits: Splits) -> Splits:
    """Return splits whose NaN are missing values, with a note where the training examples have none.

    Raises:
        UserError: such data have no place for NaN, or an element of x has no value in any training example.
    """
    train = splits.train
    if not isinstance(train, Examples) or not isinstance(train.x, Tensor) or train.dtype == torch.uint8:
        raise UserError("data.missing=observed: has no effect on grey levels and streams; arrays with NaN are allowed")
    missing = train.x.isnan().flatten(1)
    if empty := missing.all(0).nonzero().flatten().tolist():
        named = f"{splits.features[empty[0]]} (column {empty[0]})" if splits.features else f"column {empty[0]}"
        more = f" (one of {len(empty)} such)" if len(empty) > 1 else ""
        raise UserError(f"data.missing=observed: {named} has no value in any training example{more}; leave it out")
    if missing.any():
        return splits
    note = "data.missing=observed, but no value is missing in training: the model never learns to do without one"
    return replace(splits, notes=(*splits.notes, note))


def _means(examples: Examples) -> list[float]:
    """Return the mean of each of WATCHED examples, and of its labels, all evenly apart."""
    some = examples[torch.linspace(0, len(examples) - 1, min(WATCHED, len(examples))).long()]
    parts = [some.x[:]] + ([] if some.y is None else [some.y])
    return [mean for part in parts for mean in part.double().reshape(len(part), -1).nanmean(1).tolist()]


def fix(examples: Examples, kind: str, levels: int | None, seed: int, *, missing: bool = False) -> Examples:
    """Apply a transform once and for all, with its own seed; binary results are stored as uint8."""
    if kind == "scale":
        return examples
    holes = examples.x.isnan() if missing and isinstance(examples.x, Tensor) else None
    x = empty(examples.x.shape, torch.float32 if kind == "dequantize" or missing else torch.uint8)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for start in range(0, len(x), 4096):
            part = slice(start, start + 4096)
            x[part] = pixels.transform(kind, levels)(examples.x[part])
    return Examples(x if holes is None else x.masked_fill(holes, math.nan), examples.y)


def _describe(splits: Splits) -> Spec:
    train = splits.train
    if train.dtype != torch.uint8:
        parts = [part.bounds() for part in (train, splits.valid, splits.test) if part is not None]
        low, high = min(least for least, _ in parts), max(largest for _, largest in parts)
        return Spec(train.shape, splits.levels, low, high, splits.names, train.attributes)  # levels: 2, or none
    if splits.levels is None:
        raise UserError("data: a source of uint8 examples must say how many levels they have")
    return Spec(train.shape, splits.levels, 0.0, 1.0, splits.names, train.attributes)


def _standardize(standardize: bool | str, splits: Splits, raw: Spec, support: Support) -> tuple[Splits, Spec]:
    """Give each element of real-valued data mean 0 and variance 1 over the training examples, where that is asked.

    Unbounded data that are to keep their own units are described by these means and standard deviations instead.
    """
    unbounded = raw.levels is None and not raw.unit and support.standardize
    wanted = unbounded if standardize == "auto" else bool(standardize)
    if not wanted and not unbounded:
        return splits, raw
    if raw.levels is not None:
        raise UserError("data.standardize=true: has no effect on grey levels; it is for real values")
    std, mean = splits.train.std_mean()
    std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-30), std, torch.ones_like(std))  # constants stay 0
    if not wanted:
        return splits, replace(raw, center=_values(mean), spread=_values(std))
    splits = replace(
        splits,
        train=splits.train.standardized(mean, std),
        valid=splits.valid and splits.valid.standardized(mean, std),
        test=splits.test and splits.test.standardized(mean, std),
    )
    described = replace(_describe(splits), features=raw.features, missing=raw.missing)
    return splits, replace(described, mean=_values(mean), std=_values(std))


def _values(x: Tensor) -> tuple[float, ...]:
    return tuple(x.flatten().tolist())


def _choose(binarize: str, dequantize: bool, raw: Spec, support: Support) -> tuple[str, Spec]:
    """Return the transform of a training batch and what the model sees after it."""
    wanted = binarize
    if binarize == "auto":
        wanted = "dynamic" if support.binarize and raw.unit and not raw.binary else "none"
    if wanted != "none":
        return _binarized(binarize, raw, wanted)
    if not dequantize:
        return "scale", raw
    if raw.levels is None:
        raise UserError("data.dequantize=true: has no effect on real values; it is for grey levels")
    return "dequantize", replace(raw, levels=None, dequantized=raw.levels)


def _binarized(given: str, raw: Spec, wanted: str) -> tuple[str, Spec]:
    if not raw.unit:
        raise UserError(
            f"data.binarize={given}: values run from {raw.low:g} to {raw.high:g}; only data in [0, 1] can be binarised"
        )
    if raw.binary:
        raise UserError(f"data.binarize={given}: has no effect, the data are binary; auto or none is allowed")
    return {"dynamic": "bernoulli"}.get(wanted, wanted), replace(raw, levels=2)


def _check_support(spec: Spec, support: Support, option: str) -> None:
    if refusal := support.refusal(spec):
        raise UserError(f"likelihood={option}: the data's values run from {spec.low:g} to {spec.high:g}; {refusal}")
