"""Mixtures."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily

from vae_cli.distribution.base import Explained, exact, lacking
from vae_cli.distribution.gaussian import diagonal, is_diagonal


class GaussianMixture(Explained):
    """Σ_c π_c N(loc_c, diag scale_c²) with event shape [D], and batch shape [] unless expanded.

    Args:
        loc: [C, D].
        scale: [C, D].
        logits: [C], unnormalised log π; None for equal weights.
    """

    def __init__(self, loc: Tensor, scale: Tensor, logits: Tensor | None = None):
        super().__init__(event_shape=loc.shape[-1:], validate_args=False)
        self.loc, self.scale = loc, scale
        self.log_weights = (loc.new_zeros(len(loc)) if logits is None else logits).log_softmax(-1)

    @property
    def mean(self) -> Tensor:
        """Σ_c π_c loc_c, [*batch, D]."""
        return (self.log_weights.exp() @ self.loc).expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """Σ_c π_c (scale_c² + (loc_c − mean)²), [*batch, D]."""
        weights = self.log_weights.exp()
        spread = self.scale.square() + (self.loc - weights @ self.loc).square()
        return (weights @ spread).expand(self._extended_shape())

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) [...], nats, for z [..., D].

        The squares are expanded into two matrix products, [..., D] by [D, C]; in float64, so that nothing is lost
        where they cancel.
        """
        if self.batch_shape:
            z = z.expand(torch.broadcast_shapes(z.shape, self._extended_shape()))
        double = exact(z.device)
        if double != torch.float64:  # no float64 here: sum the squares themselves
            each = diagonal(self.loc, self.scale).log_prob(z.unsqueeze(-2))
            return torch.logsumexp(each + self.log_weights, -1)
        loc, precision = self.loc.to(double), self.scale.to(double) ** -2
        square, linear = z.to(double) ** 2 @ (-0.5 * precision).T, z.to(double) @ (loc * precision).T
        constant = 0.5 * (precision.log() - loc**2 * precision - math.log(2.0 * math.pi)).sum(-1)
        return torch.logsumexp(square + linear + constant + self.log_weights.to(double), -1).to(z.dtype)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component, then z [*sample_shape, *batch, D]; without gradients."""
        shape = torch.Size(sample_shape) + self.batch_shape
        index = Categorical(logits=self.log_weights, validate_args=False).sample(shape)
        loc, scale = self.loc[index], self.scale[index]
        return loc + scale * torch.randn_like(loc)


class ComponentMixture(MixtureSameFamily):
    """torch's mixture, which says in a sentence what it has no closed form for."""

    @property
    def mode(self) -> Tensor:
        """There is none in closed form."""
        raise lacking(self, "mode", "the likeliest of many draws, by log_prob")

    def entropy(self) -> Tensor:
        """There is none in closed form."""
        raise lacking(self, "entropy", "-log_prob(sample((1000,))).mean(0)")


def mixture(components: Distribution, logits: Tensor | None = None) -> Distribution:
    """Return the mixture of a distribution's batch [C], equally weighted unless logits [C] say otherwise."""
    if is_diagonal(components):
        return GaussianMixture(components.base_dist.loc, components.base_dist.scale, logits)  # type: ignore[attr-defined]
    if logits is None:
        logits = torch.zeros(components.batch_shape, device=components.sample().device)
    return ComponentMixture(Categorical(logits=logits, validate_args=False), components, validate_args=False)
