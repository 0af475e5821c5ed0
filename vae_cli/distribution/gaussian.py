"""Gaussians whose draws for a rank are those that one process would draw."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vae_cli.system import randomness


class Gaussian(Normal):
    """torch's Normal, whose draws for a rank's examples are those that one process would draw for them."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw loc + scale · ε [*sample_shape, *batch], with gradients."""
        return self.loc + self.scale * randomness.normal(self._extended_shape(sample_shape), self.loc)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients, for the whole batch; torch's own asks the device whether the scales are positive."""
        return self.loc + self.scale * self.loc.new_empty(self._extended_shape(sample_shape)).normal_()


class FullGaussian(MultivariateNormal):
    """torch's MultivariateNormal, its draws likewise."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw loc + L ε [*sample_shape, *batch, D], with gradients."""
        noise = randomness.normal(self._extended_shape(sample_shape), self.loc)
        return self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


def diagonal(loc: Tensor, scale: Tensor) -> Independent:
    """Return N(loc, diag scale²) with event shape [D] for tensors [..., D]."""
    return Independent(Gaussian(loc, scale, validate_args=False), 1, validate_args=False)


def is_diagonal(distribution: Distribution) -> bool:
    """Whether a distribution is a Gaussian of independent dimensions."""
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal)
