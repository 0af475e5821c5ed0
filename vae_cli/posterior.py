"""Posteriors q(z|x,c): encoder features become a distribution over z."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli import distribution
from vae_cli.distribution import Remembering, diagonal


class Posterior(nn.Module):
    """Base of the posteriors: an affine map of the features gives the parameters of a distribution.

    Args:
        features: F, width of the encoder's features.
        outputs: P, parameters of q(z|x).
    """

    def __init__(self, features: int, outputs: int):
        super().__init__()
        self.head = nn.Linear(features, outputs)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return q(z|x), batch shape [B] and event shape [D], from its parameters [B, P]."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Distribution:
        """Map features [B, F] to q(z|x) with batch shape [B] and event shape [D]."""
        return self.distribution(self.head(features))


class Gaussian(Posterior):
    """q(z|x) = N(μ, diag σ²); the parameters are μ and log σ.

    Args:
        features: F, width of the encoder's features.
        latent_dim: D, dimensions of z.
    """

    def __init__(self, *, features: int, latent_dim: int):
        super().__init__(features, 2 * latent_dim)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return N(μ, diag σ²) from (μ, log σ) [B, 2 D]."""
        loc, log_scale = parameters.chunk(2, dim=-1)
        return diagonal(loc, log_scale.exp())


class FullGaussian(Posterior):
    """q(z|x) = N(μ, LLᵀ), L lower-triangular with a positive diagonal; it starts diagonal.

    The parameters are μ, the logarithm of L's diagonal, and what is below it.

    Args:
        features: F, width of the encoder's features.
        latent_dim: D, dimensions of z.
    """

    places: Tensor

    def __init__(self, *, features: int, latent_dim: int):
        below = latent_dim * (latent_dim - 1) // 2
        super().__init__(features, 2 * latent_dim + below)
        self.sizes = [latent_dim, latent_dim, below]
        with torch.no_grad():
            self.head.weight[2 * latent_dim :], self.head.bias[2 * latent_dim :] = 0.0, 0.0
        self.register_buffer("places", torch.tril_indices(latent_dim, latent_dim, -1), persistent=False)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return N(μ, LLᵀ) from (μ, log diag L, L below) [B, 2 D + D (D − 1)/2]."""
        loc, log_scale, below = parameters.split(self.sizes, dim=-1)
        tril = torch.diag_embed(log_scale.exp())
        tril[..., self.places[0], self.places[1]] = below
        return distribution.FullGaussian(loc, scale_tril=tril, validate_args=False)


class Flow(Posterior):
    """q(z|x): a Gaussian draw passed through inverse autoregressive transforms (Kingma et al. 2016), by zuko.

    The parameters are μ and log σ of the Gaussian and a context that each transform sees beside the draw so far; at
    the start the transforms are the identity.

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
        super().__init__(features, 2 * latent_dim + context)
        from zuko.flows import MAF

        self.sizes = [latent_dim, latent_dim, context]
        self.transform = MAF(latent_dim, context, transforms=transforms, hidden_features=list(hidden)).transform
        start_as_identity(self.transform)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return the transformed Gaussian from (μ, log σ, context) [B, 2 D + context]."""
        from zuko.distributions import NormalizingFlow

        loc, log_scale, context = parameters.split(self.sizes, dim=-1)
        return Remembering(NormalizingFlow(self.transform(context).inv, diagonal(loc, log_scale.exp())))


def start_as_identity(transform: nn.Module) -> None:
    """Set the last layer of each network of a zuko transform to 0, so that it changes nothing yet."""
    for network in transform.modules():
        if isinstance(network, nn.Sequential) and isinstance(network[-1], nn.Linear):
            nn.init.zeros_(network[-1].weight)
            nn.init.zeros_(network[-1].bias)
