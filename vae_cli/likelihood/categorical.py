"""A mass on grey levels: a logit for each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_cli.likelihood.base import Elements, Likelihood
from vae_cli.likelihood.support import Levels


class CategoricalElements(Elements):
    """A mass on L grey levels; `logits` are [*batch, *event, L]."""

    batched = ("logits",)

    def __init__(self, logits: Tensor, event_dims: int):
        super().__init__(logits[..., 0], event_dims)
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        """Σ_k p_k · k/(L − 1)."""
        return self.logits.softmax(-1) @ self._values

    @property
    def mode(self) -> Tensor:
        """The likeliest level."""
        return self.logits.argmax(-1).to(self.logits.dtype) / (self.logits.shape[-1] - 1)

    @property
    def variance(self) -> Tensor:
        """Σ_k p_k (k/(L − 1) − mean)²."""
        return (self.logits.softmax(-1) * (self._values - self.mean.unsqueeze(-1)).square()).sum(-1)

    def element_entropy(self) -> Tensor:
        """Return −Σ_k p_k log p_k."""
        log_p = self.logits.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    @property
    def _values(self) -> Tensor:
        """What the levels stand for, [L]."""
        return torch.linspace(0.0, 1.0, self.logits.shape[-1], device=self.logits.device, dtype=self.logits.dtype)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return the log-probability of the level that x is."""
        level = (x * (self.logits.shape[-1] - 1)).round().long()
        shape = torch.broadcast_shapes(level.shape, self.logits.shape[:-1])
        chosen = self.logits.expand(*shape, -1).gather(-1, level.expand(shape).unsqueeze(-1)).squeeze(-1)
        return chosen - self.logits.logsumexp(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw levels."""
        shape = self._extended_shape(sample_shape)
        draws = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
        return draws.view(shape).float() / (self.logits.shape[-1] - 1)


class Categorical(Likelihood):
    """A mass on L grey levels: one logit for each level of each element (van den Oord et al. 2016).

    Args:
        levels: L.

    >>> p = Categorical(levels=17)(torch.zeros(5, 17, 4), 1)
    >>> round(float(p.log_prob(torch.zeros(4))[0]), 4)  # 4 log 1/17
    -11.3329
    """

    support = Levels()
    gives = ("mass",)

    def __init__(self, *, levels: int):
        super().__init__()
        self.outputs = levels

    def forward(self, outputs: Tensor, event_dims: int, c: Tensor | None = None) -> Distribution:
        """Map logits [..., L, *shape] to p(x|z)."""
        return CategoricalElements(outputs.movedim(-event_dims - 1, -1), event_dims)
