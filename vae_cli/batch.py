"""A batch of examples."""

from __future__ import annotations

from typing import NamedTuple

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
