"""A mixture of Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.config.types import Count
from vae_cli.distribution import GaussianMixture


class Mixture(nn.Module):
    """p(z) = Σ_c π_c N(μ_c, diag σ_c²), all learned; the means start as draws of N(0, I).

    Args:
        latent_dim: D, dimensions of z.
        components: of the mixture.

    >>> p = Mixture(latent_dim=2, components=10)()
    >>> p.sample((5,)).shape, p.log_prob(torch.zeros(5, 2)).shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, *, latent_dim: int, components: Count):
        super().__init__()
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c has no effect."""
        return GaussianMixture(self.loc, self.log_scale.exp(), self.logits)
