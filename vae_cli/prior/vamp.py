"""The mixture of the posteriors of learned pseudo-inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.config.types import Count
from vae_cli.distribution import mixture

MARGIN = 0.02  # how far within the data's range pseudo-inputs start, as a fraction of it


class Vamp(nn.Module):
    """p(z) = 1/K Σ_k q(z|u_k) with learned pseudo-inputs u_k (VampPrior, Tomczak & Welling 2018, eq. 9).

    Pseudo-inputs are low + (high − low)·σ(v): always within the data's range. With a conditional model each has a
    learned condition of its own.

    Args:
        encoder: (x, c) → q(z|x,c).
        shape: of one example.
        condition_dim: C, dimensions of the condition; 0 for none.
        low: the lowest value of the data.
        high: the highest.
        components: K.
        start: `data`: pseudo-inputs start as training examples; `noise`: as noise around the training mean.

    >>> from vae_cli.distribution import diagonal
    >>> prior = Vamp(
    ...     encoder=lambda x, c: diagonal(x[:, :2], torch.ones(len(x), 2)), shape=(4,), condition_dim=0, low=0.0,
    ...     high=1.0, components=7, start="data",
    ... )
    >>> prior.initialize(torch.rand(100, 4), None)
    >>> prior.inputs.shape, prior().sample((5,)).shape
    (torch.Size([7, 4]), torch.Size([5, 2]))
    """

    needs = {"cheap density": "the densities of {posterior} at every pseudo-input would take minutes a step"}

    def __init__(
        self,
        *,
        encoder: Callable[[Tensor, Tensor | None], Distribution],
        shape: Sequence[int],
        condition_dim: int,
        low: float,
        high: float,
        components: Count,
        start: Literal["data", "noise"],
    ):
        super().__init__()
        self.encoder, self.start, self.low, self.high = encoder, start, low, max(high, low + 1e-6)
        self.raw = nn.Parameter(torch.zeros(components, *shape))
        self.conditions = nn.Parameter(torch.zeros(components, condition_dim)) if condition_dim else None

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs u [K, *shape]."""
        return self.low + (self.high - self.low) * self.raw.sigmoid()

    @torch.no_grad()
    def initialize(self, x: Tensor, c: Tensor | None) -> None:
        """Set the start from training examples x [N, *shape] and their conditions c [N, C]."""
        index = torch.randint(len(x), (len(self.raw),), device=x.device)
        if len(x) >= len(self.raw):
            index = torch.randperm(len(x), device=x.device)[: len(self.raw)]
        if self.start == "noise":
            self.raw.copy_(self._logit(x.mean(0)) + torch.randn_like(self.raw))
        else:
            self.raw.copy_(self._logit(x[index]))
            if len(x) < len(self.raw):  # noise makes repeated examples differ
                self.raw.add_(0.1 * torch.randn_like(self.raw))
        if self.conditions is not None and c is not None:
            self.conditions.copy_(c[index])

    def _logit(self, x: Tensor) -> Tensor:
        return torch.logit(((x - self.low) / (self.high - self.low)).clamp(MARGIN, 1.0 - MARGIN))

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c has no effect."""
        return mixture(self.encoder(self.inputs, self.conditions))
