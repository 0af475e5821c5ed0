"""The standard Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.distribution import diagonal


class Standard(nn.Module):
    """p(z) = N(0, I).

    Args:
        latent_dim: D, dimensions of z.

    >>> p = Standard(latent_dim=2)()
    >>> round(float(p.log_prob(torch.zeros(2))), 4)  # −log 2π
    -1.8379
    """

    gives = ("fixed prior",)
    loc: Tensor
    scale: Tensor

    def __init__(self, *, latent_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c has no effect."""
        return diagonal(self.loc, self.scale)
