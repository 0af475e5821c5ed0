"""Posteriors q(z|x,c): encoder features become a distribution over z."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal


class Gaussian(nn.Module):
    """q(z|x) = N(μ, diag σ²), both affine in the features, σ = exp of its map.

    Args:
        features: F, width of the encoder's features.
        latent_dim: D, dimensions of z.
    """

    def __init__(self, *, features: int, latent_dim: int):
        super().__init__()
        self.head = nn.Linear(features, 2 * latent_dim)

    def forward(self, features: Tensor) -> Distribution:
        """Map features [B, F] to q(z|x) with batch shape [B] and event shape [D]."""
        loc, log_scale = self.head(features).chunk(2, dim=-1)
        return Independent(Normal(loc, log_scale.exp(), validate_args=False), 1, validate_args=False)
