"""A Gaussian passed through inverse autoregressive transforms."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.config.types import Count, SomeWidths
from vae_cli.distribution import CachedLogProb, diagonal
from vae_cli.posterior.base import Head, Posterior


class Flow(Posterior):
    """q(z|x): a Gaussian draw passed through inverse autoregressive transforms (Kingma et al. 2016), by zuko.

    The parameters are μ and log σ of the Gaussian and a context that each transform sees with the draw so far; the
    transforms start as the identity.

    Args:
        head: see `Posterior`.
        latent_dim: D, dimensions of z.
        transforms: autoregressive transforms; each reverses the order of the dimensions.
        hidden: widths of the hidden layers of each transform's network.
        context: width of the context.

    >>> import torch
    >>> posterior = Flow(
    ...     head=lambda outputs, extra: torch.nn.Linear(8, outputs * 3 + extra), latent_dim=3, transforms=1, hidden=[8],
    ...     context=4,
    ... )
    >>> q = posterior(torch.zeros(5, 8))
    >>> z = q.rsample()
    >>> z.shape, q.log_prob(z).shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    needs = {"flat": "its context is a parameter of the whole of z, which a grid has not"}

    def __init__(self, *, head: Head, latent_dim: int, transforms: Count, hidden: SomeWidths, context: Count):
        super().__init__(head, 2, context)
        from zuko.flows import MAF

        self.sizes = [latent_dim, latent_dim, context]
        self.transform = MAF(latent_dim, context, transforms=transforms, hidden_features=list(hidden)).transform
        start_as_identity(self.transform)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return the transformed Gaussian from (μ, log σ, context) [B, 2 D + context]."""
        from zuko.distributions import NormalizingFlow

        loc, log_scale, context = parameters.split(self.sizes, dim=-1)
        return CachedLogProb(NormalizingFlow(self.transform(context).inv, diagonal(loc, log_scale.exp())))


def start_as_identity(transform: nn.Module) -> None:
    """Set the last layer of each network of a zuko transform to 0, so that it changes nothing yet."""
    for network in transform.modules():
        if isinstance(network, nn.Sequential) and isinstance(network[-1], nn.Linear):
            nn.init.zeros_(network[-1].weight)
            nn.init.zeros_(network[-1].bias)
