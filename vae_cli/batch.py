"""A batch of examples, and the means over a whole batch, whichever process holds its rows.

Objectives and likelihoods ask here for means and for the rows of a whole batch. A process that is alone holds all of
it; data-parallel training puts its own functions in place of these when it starts (`parallel.start`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """What training, evaluation and objectives are given.

    Attributes:
        x: [B, *shape] float32; 0 where an element is not known.
        y: labels [B] or [B, A], or None.
        known: which elements of x were observed [B, *shape], or None where all were.
    """

    x: Tensor
    y: Tensor | None = None
    known: Tensor | None = None

    @property
    def filled(self) -> Tensor:
        """x [B, *shape] with the mean of what is known of each element where it is missing (0 where none is)."""
        if self.known is None:
            return self.x
        total = torch.where(self.known, self.x, 0.0).sum(0)
        return torch.where(self.known, self.x, total / self.known.sum(0).clamp(min=1))

    @property
    def gapped(self) -> Tensor:
        """x [B, *shape] with NaN where it is missing."""
        return self.x if self.known is None else self.x.masked_fill(~self.known, math.nan)

    def rows(self, index: slice | Tensor) -> Batch:
        """Return some of the examples."""
        x, y, known = self
        return Batch(x[index], None if y is None else y[index], None if known is None else known[index])


def _same(values: Tensor, axis: int = 0) -> Tensor:
    return values


@dataclass
class Joint:
    """The functions in force.

    Attributes:
        mean: of a tensor over all ranks, with gradients.
        gather: the rows of all ranks along an axis, with gradients.
        alone: whether this process holds whole batches.
    """

    mean: Callable[[Tensor], Tensor] = _same
    gather: Callable[..., Tensor] = _same
    alone: bool = True


JOINT = Joint()


def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all ranks."""
    return JOINT.mean(values)


def gather(values: Tensor, axis: int = 0) -> Tensor:
    """Return the rows of all ranks along an axis."""
    return values if JOINT.alone else JOINT.gather(values, axis)


def mean_of_batch(values: Tensor, known: Tensor | None = None) -> Tensor:
    """Return the mean [] of (the known) values of a whole batch, whichever rank holds its rows."""
    if known is None:
        return mean(values.mean())
    known = known.expand(values.shape)
    total = mean(torch.where(known, values, 0.0).sum())
    return total / mean(known.sum().to(values.dtype)).clamp(min=1.0)
