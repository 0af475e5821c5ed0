"""Posteriors q(z|x,c): encoder features become a distribution over z."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, MultivariateNormal

from vae_cli.distribution import Remembering, diagonal


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
        return diagonal(loc, log_scale.exp())


class FullGaussian(nn.Module):
    """q(z|x) = N(μ, LLᵀ), L lower-triangular with a positive diagonal; it starts diagonal.

    Args:
        features: F, width of the encoder's features.
        latent_dim: D, dimensions of z.
    """

    def __init__(self, *, features: int, latent_dim: int):
        super().__init__()
        self.head = nn.Linear(features, 2 * latent_dim)
        self.below = nn.Linear(features, latent_dim * (latent_dim - 1) // 2)
        nn.init.zeros_(self.below.weight)
        nn.init.zeros_(self.below.bias)
        self.register_buffer("places", torch.tril_indices(latent_dim, latent_dim, -1), persistent=False)
        self.places: Tensor

    def forward(self, features: Tensor) -> Distribution:
        """Map features [B, F] to q(z|x) with batch shape [B] and event shape [D]."""
        loc, log_scale = self.head(features).chunk(2, dim=-1)
        tril = torch.diag_embed(log_scale.exp())
        tril[..., self.places[0], self.places[1]] = self.below(features)
        return MultivariateNormal(loc, scale_tril=tril, validate_args=False)


class Flow(nn.Module):
    """q(z|x): a Gaussian draw passed through inverse autoregressive transforms (Kingma et al. 2016), by zuko.

    Each transform sees the draw so far and a context that is affine in the features; at the start it is the identity.

    Args:
        features: F, width of the encoder's features.
        latent_dim: D, dimensions of z.
        transforms: autoregressive transforms; the order of the dimensions turns around from one to the next.
        hidden: widths of the hidden layers of each transform's network.
        context: width of the context.
    """

    def __init__(
        self,
        *,
        features: int,
        latent_dim: int,
        transforms: int = 2,
        hidden: Sequence[int] = (128,),
        context: int = 64,
    ):
        super().__init__()
        from zuko.flows import MAF

        self.base = Gaussian(features=features, latent_dim=latent_dim)
        self.context = nn.Linear(features, context)
        self.transform = MAF(latent_dim, context, transforms=transforms, hidden_features=list(hidden)).transform
        start_as_identity(self.transform)

    def forward(self, features: Tensor) -> Distribution:
        """Map features [B, F] to q(z|x) with batch shape [B] and event shape [D]."""
        from zuko.distributions import NormalizingFlow

        transform = self.transform(self.context(features))
        return Remembering(NormalizingFlow(transform.inv, self.base(features)))


def start_as_identity(transform: nn.Module) -> None:
    """Set the last layer of each network of a zuko transform to 0, so that it changes nothing yet."""
    for network in transform.modules():
        if isinstance(network, nn.Sequential) and isinstance(network[-1], nn.Linear):
            nn.init.zeros_(network[-1].weight)
            nn.init.zeros_(network[-1].bias)
