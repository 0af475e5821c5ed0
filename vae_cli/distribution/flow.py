"""Normalizing flows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_cli.distribution.base import Explained


class CachedLogProb(Explained):
    """A distribution that knows the log-density of what it drew last, where finding it anew is dear.

    Args:
        flow: a `zuko.distributions.NormalizingFlow`, batch [B], event [D].
        draws: that its mean is estimated from.
    """

    has_rsample = True

    def __init__(self, flow: Any, draws: int = 64):
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=False)
        self.flow, self.draws = flow, draws
        self.last: tuple[Tensor, Tensor] | None = None

    @property
    def mean(self) -> Tensor:
        """The mean of so many draws, [B, D]: there is no closed form."""
        with torch.no_grad():
            return self.flow.rsample((self.draws,)).mean(0)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CachedLogProb:
        """Return the same distribution with a larger batch."""
        return CachedLogProb(self.flow.expand(torch.Size(batch_shape)), self.draws)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z [*sample_shape, B, D] with gradients, and remember log q(z)."""
        self.last = self.flow.rsample_and_log_prob(torch.Size(sample_shape))
        return self.last[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z), nats; of any other z than the last drawn it takes D passes a transform."""
        return self.last[1] if self.last is not None and z is self.last[0] else self.flow.log_prob(z)
