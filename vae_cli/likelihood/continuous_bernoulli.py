"""A density on [0, 1]."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_cli.likelihood.base import Likelihood, split
from vae_cli.likelihood.bernoulli import BernoulliElements
from vae_cli.likelihood.support import Unit


class ContinuousBernoulliElements(BernoulliElements):
    """p(x) = C(l) exp(x·l) / (1 + exp l) with log C(l) = log(l / tanh(l/2)), a density on [0, 1]."""

    has_rsample = True

    @property
    def mean(self) -> Tensor:
        """1 / (1 − e^−l) − 1/l, near l = 0 its series ½ + l/12 − l³/720."""
        small, safe = self._safe_logits()
        exact = 1.0 / -torch.expm1(-safe) - 1.0 / safe
        return torch.where(small, 0.5 + self.logits / 12.0 - self.logits**3 / 720.0, exact)

    @property
    def variance(self) -> Tensor:
        """1/l² − 1/(4 sinh²(l/2)), near l = 0 its series 1/12 − l²/240 + l⁴/6048."""
        small, square = (
            self.logits.abs() < 0.5,
            self.logits**2,
        )  # the two terms nearly cancel further out than the mean's
        safe = torch.where(small, torch.ones_like(self.logits), self.logits)
        exact = safe**-2 - 0.25 * torch.sinh(safe / 2.0) ** -2
        return torch.where(small, 1.0 / 12.0 - square / 240.0 + square**2 / 6048.0, exact)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return x·l − softplus(l) + log C(l); near l = 0, log C = log 2 + l²/12 − 7l⁴/1440."""
        small, safe = self._safe_logits()
        square = self.logits**2
        exact = safe.abs().log() - (safe / 2.0).tanh().abs().log()
        series = math.log(2.0) + square / 12.0 - 7.0 * square**2 / 1440.0
        return super().element_log_prob(x) + torch.where(small, series, exact)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        return self.rsample(sample_shape)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with gradients, by the inverse of F(x) = (e^(l·x) − 1) / (e^l − 1), for l > 0 by 1 − x under −l."""
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        negative = -self.logits.abs().clamp(min=1e-6)  # closer to 0 it is uniform to float precision
        x = torch.log1p(u * torch.expm1(negative)) / negative
        return torch.where(self.logits > 0.0, 1.0 - x, x)

    def _safe_logits(self) -> tuple[Tensor, Tensor]:
        small = self.logits.abs() < 0.1
        return small, torch.where(small, torch.ones_like(self.logits), self.logits)


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1] (Loaiza-Ganem & Cunningham 2019): one logit for each element.

    >>> p = ContinuousBernoulli()(torch.zeros(5, 1, 4), 1)  # logits 0: uniform on [0, 1]
    >>> round(abs(float(p.log_prob(torch.rand(4))[0])), 4), p.mean[0].tolist()
    (0.0, [0.5, 0.5, 0.5, 0.5])
    """

    support = Unit()

    def forward(self, outputs: Tensor, event_dims: int, c: Tensor | None = None) -> Distribution:
        """Map logits [..., 1, *shape] to p(x|z)."""
        return ContinuousBernoulliElements(split(outputs, event_dims)[0], event_dims)
