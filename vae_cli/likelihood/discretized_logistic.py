"""A mass on grey levels: logistics integrated over each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from vae_cli.config.types import Count
from vae_cli.likelihood.base import Elements, Likelihood
from vae_cli.likelihood.support import Levels

NEAREST = 16  # edges on either side of a logistic narrower than a level; e^−16 of it is beyond them


class DiscretizedLogisticElements(Elements):
    """A mixture of logistics integrated over bins of width 1/(L − 1); the edge bins take the whole tails.

    `logits`, `loc` and `log_scale` are [M, *batch, *event].
    """

    def __init__(self, logits: Tensor, loc: Tensor, log_scale: Tensor, levels: int, event_dims: int):
        super().__init__(loc[0], event_dims)
        self.logits, self.loc, self.log_scale, self.levels = logits, loc, log_scale, levels

    @property
    def mean(self) -> Tensor:
        """Σ_m π_m (1 − h Σ_k F_m(e_k)) over the edges e_k = (k + ½)h between levels, h = 1/(L − 1)."""
        scale, width = self.log_scale.exp(), 1.0 / (self.levels - 1)
        narrow = _sum_nearest(self.loc, scale.clamp(max=width), width)
        wide = _sum_smooth(self.loc, scale.clamp(min=width), width)
        return (self.logits.softmax(0) * (1.0 - torch.where(scale < width, narrow, wide))).sum(0)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return logsumexp_m [log π_m + log(σ(a) − σ(b))], a and b the standardised edges of the bin.

        log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b − a)), exact in the far tails.
        """
        logits, loc, log_scale = self._beside(x)
        half, precision = 0.5 / (self.levels - 1), torch.exp(-log_scale)
        upper, lower = (x + half - loc) * precision, (x - half - loc) * precision
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-2.0 * half * precision))
        mass = torch.where(x < half, below, torch.where(x > 1.0 - half, above, inside))
        return mass[0] if len(mass) == 1 else torch.logsumexp(logits.log_softmax(0) + mass, 0)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component, then a logistic value, rounded to the nearest level."""
        shape = self._extended_shape(sample_shape)
        gumbel = -torch.empty(len(self.loc), *shape, device=self.loc.device).exponential_().log()
        logits, *others = self._beside(gumbel[0])
        choice = (logits + gumbel).argmax(0, keepdim=True)
        loc, log_scale = (each.expand_as(gumbel).gather(0, choice)[0] for each in others)
        u = torch.rand(shape, device=loc.device).clamp(1e-7, 1.0 - 1e-7)
        value = loc + log_scale.exp() * torch.logit(u)
        return (value.clamp(0.0, 1.0) * (self.levels - 1)).round() / (self.levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticElements:
        """Return the same distribution with a larger batch."""
        parts = (t.movedim(0, -1) for t in (self.logits, self.loc, self.log_scale))
        logits, loc, scale = (t.expand(*batch_shape, *self.event_shape, -1).movedim(-1, 0) for t in parts)
        return DiscretizedLogisticElements(logits, loc, scale, self.levels, len(self.event_shape))

    @property
    def mode(self) -> Tensor:
        """The likeliest level."""
        best, mode = torch.full_like(self.loc[0], -math.inf), torch.zeros_like(self.loc[0])
        for level, log_p in self._masses():
            mode = torch.where(log_p > best, level, mode)
            best = torch.maximum(best, log_p)
        return mode

    @property
    def variance(self) -> Tensor:
        """Σ_k p_k (k/(L − 1) − mean)²."""
        mean, total = self.mean, torch.zeros_like(self.loc[0])
        for level, log_p in self._masses():
            total = total + log_p.exp() * (level - mean).square()
        return total

    def element_entropy(self) -> Tensor:
        """Return −Σ_k p_k log p_k."""
        total = torch.zeros_like(self.loc[0])
        for _, log_p in self._masses():
            total = total + torch.special.entr(log_p.exp())
        return total

    def _masses(self) -> Iterator[tuple[float, Tensor]]:
        """Yield each level and its log-probability [*batch, *event]: one at a time, for memory's sake."""
        for k in range(self.levels):
            level = k / (self.levels - 1)
            yield level, self.element_log_prob(torch.full_like(self.loc[0], level))

    def _beside(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return logits, loc and log_scale, each [M, *], so that their axes after M broadcast against those of x."""
        more = [1] * (x.ndim - self.loc.ndim + 1)
        return tuple(t.view(len(t), *more, *t.shape[1:]) for t in (self.logits, self.loc, self.log_scale))


def _sum_nearest(loc: Tensor, scale: Tensor, width: float) -> Tensor:
    """Return h Σ_k F(e_k), F of logistics with scales of at most h: beyond the nearest edges it is 0 or 1."""
    edges = round(1.0 / width)
    nearest = (loc / width - 0.5).round().clamp(0.0, edges - 1.0)
    total = (edges - 1.0 - NEAREST - nearest).clamp(min=0.0)  # edges above, where F is 1
    for offset in range(-NEAREST, NEAREST + 1):
        k = nearest + offset
        total = total + torch.sigmoid(((k + 0.5) * width - loc) / scale) * ((k >= 0.0) & (k < edges))
    return width * total


def _sum_smooth(loc: Tensor, scale: Tensor, width: float) -> Tensor:
    """Return h Σ_k F(e_k), F of logistics with scales of at least h, by the Euler–Maclaurin formula.

    For midpoints it is ∫₀¹ F − h²/24 [F′] + 7h⁴/5760 [F‴], with F′ = σ(1 − σ)/s and F‴ = F′(1 − 6σ(1 − σ))/s².
    """
    ends, ratio = [], width / scale
    for end in (0.0, 1.0):
        z = (end - loc) / scale
        slope = torch.sigmoid(z) * torch.sigmoid(-z)
        terms = ratio * slope / 24.0 - 7.0 * ratio**3 * slope * (1.0 - 6.0 * slope) / 5760.0
        ends.append(scale * F.softplus(z) - width * terms)
    return ends[1] - ends[0]


class DiscretizedLogistic(Likelihood):
    """A mass on L grey levels (Salimans et al. 2017, without their coupling of colours).

    Args:
        levels: L.
        mixtures: M, logistics for each element.

    >>> likelihood = DiscretizedLogistic(levels=3, mixtures=1)
    >>> p = likelihood(torch.zeros(2, 1), 1)  # location and raw log-scale of one element
    >>> levels = torch.tensor([[0.0], [0.5], [1.0]])
    >>> round(float(p.log_prob(levels).exp().sum()), 4)  # the masses of all levels
    1.0
    """

    support = Levels()
    gives = ("mass",)

    def __init__(self, *, levels: int, mixtures: Count):
        super().__init__()
        self.levels, self.mixtures = levels, mixtures
        self.outputs = 3 * mixtures if mixtures > 1 else 2

    def forward(self, outputs: Tensor, event_dims: int, c: Tensor | None = None) -> Distribution:
        """Map locations, log-scales (and mixture logits) [..., P, *shape] to p(x|z)."""
        stacked = outputs.movedim(-event_dims - 1, 0)  # [P, ..., *shape]
        loc, raw, *rest = stacked.split(self.mixtures)
        spread = torch.linspace(0.0, 1.0, self.mixtures + 2, device=loc.device)[1:-1]  # components start apart
        loc = loc + spread.view(-1, *[1] * (loc.ndim - 1))
        log_scale = (-9.0 + F.softplus(raw + 7.0)).clamp(max=5.0)  # e^−2 at the start, within e^−9 … e^5
        logits = rest[0] if rest else torch.zeros_like(loc)
        return DiscretizedLogisticElements(logits, loc, log_scale, self.levels, event_dims)
