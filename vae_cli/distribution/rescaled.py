"""Standardised data in their own units."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.distributions import Distribution

from vae_cli.distribution.base import Explained


class Rescaled(Explained):
    """mean + std · u, u ~ base, element by element: standardised data in their own units.

    Args:
        base: distribution of u, event shape `shape`.
        mean: [*shape].
        std: [*shape].
    """

    def __init__(self, base: Distribution, mean: Tensor, std: Tensor):
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)
        self.base, self.shift, self.std = base, mean, std

    @property
    def mean(self) -> Tensor:
        """mean + std · E[u]."""
        return self.shift + self.std * self.base.mean

    @property
    def mode(self) -> Tensor:
        """mean + std · the mode of u."""
        return self.shift + self.std * self.base.mode

    @property
    def variance(self) -> Tensor:
        """std² · Var[u]."""
        return self.std**2 * self.base.variance

    def entropy(self) -> Tensor:
        """Return the entropy [*batch], nats: that of u plus Σ log std."""
        return self.base.entropy() + self.std.log().sum()

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients: where those of u have."""
        return self.base.has_rsample

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rescaled:
        """Return the same distribution with a larger batch."""
        return Rescaled(self.base.expand(batch_shape), self.shift, self.std)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x [*sample_shape, *batch, *shape]."""
        return self.shift + self.std * self.base.sample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x with gradients."""
        return self.shift + self.std * self.base.rsample(sample_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), nats: that of u less Σ log std."""
        return self.base.log_prob((x - self.shift) / self.std) - self.std.log().sum()
