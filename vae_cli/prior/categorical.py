"""Classes, uniform or learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.distribution.one_hot import OneHot


class Categorical(nn.Module):
    """p(z) = Π_d Categorical(z_d | π_d): uniform, or with learned π that start uniform.

    Args:
        latent_dim: D.
        classes: K.
        learned: whether π is learned.

    >>> prior = Categorical(latent_dim=2, classes=3, learned=False)
    >>> round(float(prior().log_prob(torch.tensor([1.0, 0, 0, 0, 1, 0]))), 4)  # 2 log 1/3
    -2.1972
    """

    gives = ("categorical prior",)
    needs = {"discrete": "its draws are classes"}
    logits: Tensor

    def __init__(self, *, latent_dim: int, classes: int, learned: bool):
        super().__init__()
        logits = torch.zeros(latent_dim, classes)
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D · K]; the condition c plays no part."""
        return OneHot(self.logits)
