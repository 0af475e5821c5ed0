"""Examples, and how they are split."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vae_cli.data.batches.cache import empty
from vae_cli.data.batches.mapped import Mapped
from vae_cli.system.errors import UserError

PART = 1000  # examples of a feed that are decoded at once


@dataclass(frozen=True)
class Examples:
    """Examples as a source gives them.

    `x` is [N, *shape]: uint8 grey levels 0 … levels−1, or float32 values, in memory or in a file. `y` is [N] int64
    classes, [N, A] float32 attributes, or None.
    """

    x: Tensor | Mapped
    y: Tensor | None = None

    def __post_init__(self) -> None:
        if self.y is not None and len(self.y) != len(self.x):
            raise UserError(f"data: {len(self.x)} examples but {len(self.y)} labels; the counts must be equal")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> Examples:
        x = self.x.only(index) if isinstance(self.x, Mapped) else self.x[index]
        return Examples(x, None if self.y is None else self.y[index])

    def to(self, device: torch.device) -> Examples:
        """Return the same examples in the memory of a device."""
        return Examples(self.x.to(device), None if self.y is None else self.y.to(device))

    @property
    def attributes(self) -> int | None:
        """A, where labels are attribute vectors."""
        return self.y.shape[1] if self.y is not None and self.y.ndim == 2 else None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example."""
        return tuple(self.x.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        """uint8 where values are grey levels, else float32."""
        return self.x.dtype

    def bounds(self) -> tuple[float, float]:
        """Return a value that none is below and one that none is above."""
        if isinstance(self.x, Mapped):
            return self.x.bounds()
        known = self.x if self.x.dtype == torch.uint8 else self.x[~self.x.isnan()]
        return float(known.min()), float(known.max())

    def std_mean(self) -> tuple[Tensor, Tensor]:
        """Return the standard deviation and the mean of each element, [*shape]."""
        if isinstance(self.x, Mapped):
            return self.x.std_mean()
        if not bool(self.x.isnan().any()):
            return torch.std_mean(self.x, 0, correction=0)
        mean = self.x.nanmean(0)
        return (self.x - mean).square().nanmean(0).sqrt(), mean

    def standardized(self, mean: Tensor, std: Tensor) -> Examples:
        """Return the examples with `mean` subtracted, divided by `std`."""
        x = self.x.standardized(mean, std) if isinstance(self.x, Mapped) else (self.x - mean) / std
        return Examples(x, self.y)

    def some(self, most: int, seed: int) -> Examples:
        """Return `most` examples drawn at random, in their order: a sorted source gives no biased sample."""
        if most >= len(self):
            return self
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed), dtype=counting(len(self)))
        return self[order[:most].sort().values.to(self.x.device)]


class Feed(ABC):
    """Training examples that are read as a stream, one epoch after another, and never all at once.

    Attributes:
        shape: of one example.
        dtype: uint8 where values are grey levels, else float32.
        attributes: A, where labels are attribute vectors.
        readers: how many parts of an epoch are read side by side.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    attributes: int | None
    readers: int

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples of an epoch."""

    @abstractmethod
    def read(self, seed: int, epoch: int, part: range, turn: int = 0) -> Iterator[Any]:
        """Yield each example of a part of an epoch's order, shuffled, not yet decoded.

        What is yielded depends on the arguments alone. `turn` counts how often the part was read before.
        """

    @abstractmethod
    def decode(self, raw: Sequence[Any]) -> Examples:
        """Return as many examples as were read."""

    @abstractmethod
    def bounds(self) -> tuple[float, float]:
        """Return a value that none is below and one that none is above."""

    @abstractmethod
    def std_mean(self) -> tuple[Tensor, Tensor]:
        """Return the standard deviation and the mean of each element, [*shape]."""

    @abstractmethod
    def standardized(self, mean: Tensor, std: Tensor) -> Feed:
        """Return the examples with `mean` subtracted, divided by `std`."""

    def some(self, most: int, seed: int) -> Examples:
        """Return the first `most` examples of an epoch of their own, read to the end."""
        n = min(most, len(self))
        return gathered(self.decode, self.read(seed, -1, range(n)), n)


def gathered(decode: Callable[[Sequence[Any]], Examples], raw: Iterator[Any], n: int) -> Examples:
    """Return n examples (fewer, where fewer come) decoded a part at a time; where they are large, in a file."""
    x, y, done = None, [], 0
    while some := list(islice(raw, min(PART, n - done))):
        part = decode(some)
        x = empty((n, *part.shape), part.dtype) if x is None else x
        x[done : done + len(part)] = part.x[:]
        y += [] if part.y is None else [part.y]
        done += len(part)
    if x is None:
        raise UserError("data: no examples")
    return Examples(x[:done], torch.cat(y) if y else None)


@dataclass(frozen=True)
class Splits:
    """What a source gives: training examples, maybe as a feed, and validation and test where it has its own.

    `levels` is the number of grey levels of uint8 examples (256 for 8-bit pictures); `names` are those of the classes
    where labels are classes, `features` those of the elements of an example. `whole` says that examples were stored as
    whole numbers, but not as bytes: with `levels` they are taken for grey levels, without for values of their own.
    `notes` are warnings about them.
    """

    train: Examples | Feed
    valid: Examples | None = None
    test: Examples | None = None
    levels: int | None = None
    names: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    whole: bool = False
    notes: tuple[str, ...] = ()


def counting(n: int) -> torch.dtype:
    """Return the smallest integer type that can index n examples; the order from a seed does not depend on it."""
    return torch.int32 if n < 2**31 else torch.int64


def numbered(classes: int) -> tuple[str, ...]:
    """Return the names 0, 1, 2, … of so many classes."""
    return tuple(map(str, range(classes)))


def carve(source: Splits, *, valid: int | float, test: int | float | None, seed: int) -> Splits:
    """Carve what the source lacks from its training part: a seeded permutation, test first, then validation.

    Amounts are counts or fractions of the source's training part; 0 gives None. Indices keep their original order
    within each part, and no example is in two parts.
    """
    n = len(source.train)
    if isinstance(source.train, Feed):
        return source  # what comes in sequence has its own parts
    n_test = _count(test or 0, n) if source.test is None else 0
    n_valid = _count(valid, n) if source.valid is None else 0
    if n_test + n_valid >= n:
        taken = f"data.valid={valid}" + (f" and data.test={test}" if n_test else "")
        raise UserError(f"{taken}: would leave no training examples of {n}")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), dtype=counting(n))
    parts = [part.sort().values for part in order.split([n_test, n_valid, n - n_test - n_valid])]
    carved_test, carved_valid = (source.train[part] if len(part) else None for part in parts[:2])
    return replace(
        source,
        train=source.train[parts[2]] if n_test + n_valid else source.train,
        valid=source.valid if source.valid is not None else carved_valid,
        test=source.test if source.test is not None else carved_test,
    )


def _count(amount: int | float, n: int) -> int:
    return amount if isinstance(amount, int) else max(1, round(amount * n)) if amount > 0 else 0
