"""A masked autoregressive flow."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.config.types import Count, SomeWidths
from vae_cli.distribution import CachedLogProb
from vae_cli.posterior.flow import start_as_identity

MEAN_DRAWS = 1000  # draws that the mean is estimated from


class Flow(nn.Module):
    """p(z): a masked autoregressive flow (Papamakarios et al. 2017) by zuko; it starts as N(0, I).

    Densities take one pass, draws take D.

    Args:
        latent_dim: D, dimensions of z.
        transforms: autoregressive transforms; the order of the dimensions turns around from one to the next.
        hidden: widths of the hidden layers of each transform's network.

    >>> import torch
    >>> p = Flow(latent_dim=2, transforms=1, hidden=[8])()
    >>> round(p.log_prob(torch.zeros(2)).item(), 4)  # it starts as N(0, I): −log 2π
    -1.8379
    """

    needs = {"two dimensions": "an autoregressive flow needs two dimensions"}

    def __init__(self, *, latent_dim: int, transforms: Count, hidden: SomeWidths):
        super().__init__()
        from zuko.flows import MAF

        self.flow = MAF(latent_dim, transforms=transforms, hidden_features=list(hidden))
        start_as_identity(self.flow.transform)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c has no effect."""
        return CachedLogProb(self.flow(), draws=MEAN_DRAWS)
