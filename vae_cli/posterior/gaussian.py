"""A Gaussian of independent dimensions."""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution

from vae_cli.distribution import diagonal
from vae_cli.posterior.base import Head, Posterior


class Gaussian(Posterior):
    """q(z|x) = N(μ, diag σ²); the parameters are μ and log σ.

    Args:
        head: see `Posterior`.

    >>> import torch
    >>> posterior = Gaussian(head=lambda outputs, extra: torch.nn.Linear(8, outputs * 3))
    >>> posterior(torch.zeros(5, 8)).rsample((2,)).shape
    torch.Size([2, 5, 3])
    """

    gives = ("factorised", "cheap density")

    def __init__(self, *, head: Head):
        super().__init__(head, 2)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return N(μ, diag σ²) from (μ, log σ) [B, 2 D]."""
        loc, log_scale = parameters.chunk(2, dim=-1)
        return diagonal(loc, log_scale.exp())
