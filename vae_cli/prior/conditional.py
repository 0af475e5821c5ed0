"""A Gaussian for each condition."""

from __future__ import annotations

from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.config.types import Widths
from vae_cli.distribution import diagonal
from vae_cli.model.layers import dense


class Conditional(nn.Module):
    """p(z|c) = N(μ(c), diag σ(c)²), learned for each condition; it starts as N(0, I).

    Args:
        latent_dim: D, dimensions of z.
        condition_dim: C, dimensions of the condition.
        hidden: widths of the hidden layers between c and (μ, log σ); none gives each class a Gaussian of its own.

    >>> import torch
    >>> p = Conditional(latent_dim=2, condition_dim=3, hidden=[])(torch.eye(3))
    >>> p.batch_shape, p.event_shape
    (torch.Size([3]), torch.Size([2]))
    """

    needs = {"labels": "needs labels"}

    def __init__(self, *, latent_dim: int, condition_dim: int, hidden: Widths):
        super().__init__()
        self.body = dense([condition_dim, *hidden], "relu")
        self.head = nn.Linear([condition_dim, *hidden][-1], 2 * latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Map conditions c [B, C] to p(z|c) with batch shape [B] and event shape [D]."""
        assert c is not None
        loc, log_scale = self.head(self.body(c)).chunk(2, dim=-1)
        return diagonal(loc, log_scale.exp())
