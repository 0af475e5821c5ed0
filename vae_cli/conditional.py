"""Labels or attributes become what encoder, decoder and prior see: a condition c [B, C]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vae_cli.config.types import Count
from vae_cli.system.errors import UserError


class Unconditional(nn.Module):
    """No condition: p(x).

    >>> Unconditional()(None) is None
    True
    """

    dim = 0

    def forward(self, y: Tensor | None) -> None:
        """Return None, whatever the labels."""
        return None


class Label(nn.Module):
    """Classes [B] become scaled one-hot vectors or rows of a table, attributes [B, A] themselves or a learned map.

    Args:
        classes: the number of classes, or None.
        attributes: the number of attributes, or None.
        embedding: C, the width of what is learned; None for one-hot vectors and plain attributes.

    Raises:
        UserError: there are neither classes nor attributes.

    >>> import torch
    >>> label = Label(classes=4, attributes=None, embedding=None)
    >>> label(torch.tensor([1])).tolist(), label.dim  # scaled by √4
    ([[0.0, 2.0, 0.0, 0.0]], 4)
    """

    gives = ("labels",)

    def __init__(self, *, classes: int | None, attributes: int | None, embedding: Count | None):
        super().__init__()
        width = classes or attributes
        if not width:
            raise UserError("conditional=label: the data have no labels; conditional=none is allowed")
        if classes == 1:
            raise UserError("conditional=label: has no effect, the data have one class alone")
        self.classes, self.dim = classes, embedding or width
        self.scale = float(classes or 1) ** 0.5  # entries of mean square one, like those of z: c matters from the start
        self.map = nn.Linear(width, embedding, bias=False) if embedding else nn.Identity()

    def forward(self, y: Tensor | None) -> Tensor:
        """Map labels to conditions [B, C].

        Raises:
            ValueError: no labels were given.
        """
        if y is None:
            raise ValueError("a conditional model needs labels y")
        return self.map(self.scale * F.one_hot(y, self.classes) if self.classes else y)
