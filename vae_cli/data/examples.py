"""Examples, and how they are split."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_cli.data.mapped import Mapped
from vae_cli.errors import UserError


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
        """Return the same examples on a device."""
        return Examples(self.x.to(device), None if self.y is None else self.y.to(device))


@dataclass(frozen=True)
class Splits:
    """What a source gives: training examples, and validation and test where it has its own.

    `levels` is the number of grey levels of uint8 examples (256 for 8-bit pictures); `names` are those of the classes
    where labels are classes.
    """

    train: Examples
    valid: Examples | None = None
    test: Examples | None = None
    levels: int | None = None
    names: tuple[str, ...] | None = None


def subset(examples: Examples, most: int, seed: int) -> Examples:
    """Return `most` examples drawn at random, in their order: a sorted source gives no biased sample."""
    if most >= len(examples):
        return examples
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))
    return examples[order[:most].sort().values.to(examples.x.device)]


def numbered(classes: int) -> tuple[str, ...]:
    """Return the names 0, 1, 2, … of so many classes."""
    return tuple(map(str, range(classes)))


def carve(source: Splits, *, valid: int | float, test: int | float | None, seed: int) -> Splits:
    """Carve what the source lacks from its training part: a seeded permutation, test first, then validation.

    Amounts are counts or fractions of the source's training part; 0 gives None. Indices keep their original order
    within each part, and no example is in two parts.
    """
    n = len(source.train)
    n_test = _count(test or 0, n) if source.test is None else 0
    n_valid = _count(valid, n) if source.valid is None else 0
    if n_test + n_valid >= n:
        taken = f"data.valid={valid}" + (f" and data.test={test}" if n_test else "")
        raise UserError(f"{taken}: would leave no training examples of {n}")
    counting = torch.int32 if n < 2**31 else torch.int64  # half the memory, the same order
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed), dtype=counting)
    parts = [part.sort().values for part in order.split([n_test, n_valid, n - n_test - n_valid])]
    carved_test, carved_valid = (source.train[part] if len(part) else None for part in parts[:2])
    return Splits(
        train=source.train[parts[2]] if n_test + n_valid else source.train,
        valid=source.valid if source.valid is not None else carved_valid,
        test=source.test if source.test is not None else carved_test,
        levels=source.levels,
        names=source.names,
    )


def _count(amount: int | float, n: int) -> int:
    return amount if isinstance(amount, int) else max(1, round(amount * n)) if amount > 0 else 0
