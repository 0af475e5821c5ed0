"""Codes in their own shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence, register_kl

from vae_cli.distribution.base import Explained


class Shaped(Explained):
    """A distribution over flat codes [D], told of codes in their own shape.

    Args:
        base: batch [*batch], event [D].
        shape: of one code, of D elements.

    >>> from vae_cli.distribution import diagonal
    >>> q = Shaped(diagonal(torch.zeros(5, 12), torch.ones(5, 12)), (3, 2, 2))
    >>> q.event_shape, q.log_prob(q.sample()).shape
    (torch.Size([3, 2, 2]), torch.Size([5]))
    """

    def __init__(self, base: Distribution, shape: Sequence[int]):
        super().__init__(base.batch_shape, torch.Size(shape), validate_args=False)
        self.base = base

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients: where those of the flat codes have."""
        return self.base.has_rsample

    @property
    def mean(self) -> Tensor:
        """The mean [*batch, *shape]."""
        return self._shaped(self.base.mean)

    @property
    def mode(self) -> Tensor:
        """The most likely code [*batch, *shape]."""
        return self._shaped(self.base.mode)

    @property
    def variance(self) -> Tensor:
        """The variance of each element [*batch, *shape]."""
        return self._shaped(self.base.variance)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation of each element [*batch, *shape]."""
        return self._shaped(self.base.stddev)

    def entropy(self) -> Tensor:
        """Return the entropy [*batch], nats."""
        return self.base.entropy()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Shaped:
        """Return the same distribution with a larger batch."""
        return Shaped(self.base.expand(torch.Size(batch_shape)), self.event_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw codes [*sample_shape, *batch, *shape], without gradients."""
        return self._shaped(self.base.sample(torch.Size(sample_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw codes [*sample_shape, *batch, *shape], with gradients."""
        return self._shaped(self.base.rsample(torch.Size(sample_shape)))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log-densities [...], nats, of codes z [..., *shape]."""
        return self.base.log_prob(z.flatten(-len(self.event_shape)))

    def _shaped(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, self.event_shape)


@register_kl(Shaped, Shaped)
def _kl(q: Shaped, p: Shaped) -> Tensor:
    return kl_divergence(q.base, p.base)
