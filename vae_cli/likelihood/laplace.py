"""A density on the real line with heavier tails."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vae_cli.batch import mean_of_batch
from vae_cli.likelihood.gaussian import Gaussian, GaussianElements


class LaplaceElements(GaussianElements):
    """Laplace(x | loc, e^log_scale)."""

    @property
    def variance(self) -> Tensor:
        """2b²."""
        return 2.0 * self.scale.square()

    def element_entropy(self) -> Tensor:
        """Return log 2b + 1."""
        return self.scale.log() + math.log(2.0) + 1.0

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return −|x − loc|/b − log b − log 2."""
        return -(x - self.loc).abs() * torch.exp(-self.log_scale) - self.log_scale - math.log(2.0)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw loc + b·ε with gradients, ε the difference of two exponentials."""
        noise = torch.empty(2, *self._extended_shape(sample_shape), device=self.loc.device).exponential_()
        return self.loc + self.scale * (noise[0] - noise[1])

    @staticmethod
    def fit(error: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the scale of highest likelihood for (known) errors x − loc: their mean absolute value."""
        return mean_of_batch(error.abs(), known)


class Laplace(Gaussian):
    """Laplace(x | μ(z), b) on the real line; the same settings as `Gaussian`, b in place of σ.

    >>> likelihood = Laplace(scale=1.0, min_scale=0.01, shape=(4,), center=None, spread=None)
    >>> p = likelihood(torch.zeros(5, 1, 4), 1)
    >>> round(float(p.log_prob(torch.ones(4))[0]), 4)  # −4 (1 + log 2)
    -6.7726
    """

    elements = LaplaceElements
