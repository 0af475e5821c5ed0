"""A Gaussian whose dimensions may correlate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_cli import distribution
from vae_cli.posterior.base import Head, Posterior


class FullGaussian(Posterior):
    """q(z|x) = N(μ, LLᵀ), L lower-triangular with a positive diagonal; it starts diagonal.

    The parameters are μ, the logarithm of L's diagonal, and the elements of L below it.

    Args:
        head: see `Posterior`.
        latent_dim: D, dimensions of z.

    >>> posterior = FullGaussian(head=lambda outputs, extra: torch.nn.Linear(8, outputs * 3 + extra), latent_dim=3)
    >>> posterior(torch.zeros(5, 8)).rsample().shape
    torch.Size([5, 3])
    """

    gives = ("cheap density",)
    needs = {"flat": "its correlations are parameters of the whole of z, which a grid has not"}
    places: Tensor

    def __init__(self, *, head: Head, latent_dim: int):
        below = latent_dim * (latent_dim - 1) // 2
        super().__init__(head, 2, below)
        self.sizes = [latent_dim, latent_dim, below]
        last = list(self.head.modules())[-1]
        with torch.no_grad():
            last.weight[2 * latent_dim :], last.bias[2 * latent_dim :] = 0.0, 0.0  # type: ignore[operator]
        self.register_buffer("places", torch.tril_indices(latent_dim, latent_dim, -1), persistent=False)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return N(μ, LLᵀ) from (μ, log diag L, L below) [B, 2 D + D (D − 1)/2]."""
        loc, log_scale, below = parameters.split(self.sizes, dim=-1)
        tril = torch.diag_embed(log_scale.exp())
        tril[..., self.places[0], self.places[1]] = below
        return distribution.FullGaussian(loc, scale_tril=tril, validate_args=False)
