"""Distributions over z that torch lacks, and the KL divergences between them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import (
    Categorical,
    Distribution,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from vae_cli import randomness


def exact(device: torch.device) -> torch.dtype:
    """Return float64 where the device has it: the type for sums and differences of large terms."""
    return torch.float32 if device.type == "mps" else torch.float64


class Explained(Distribution):
    """A distribution that says in a sentence what it does not have, where torch raises an error without a word.

    Subclasses give the moments they have in closed form; the standard deviation follows from the variance.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    @property
    def mean(self) -> Tensor:
        """The mean [*batch, *event], where a subclass gives it."""
        raise lacking(self, "mean", "sample((1000,)).mean(0)")

    @property
    def mode(self) -> Tensor:
        """The most likely value [*batch, *event], where a subclass gives it."""
        raise lacking(self, "mode", "the likeliest of many draws, by log_prob")

    @property
    def variance(self) -> Tensor:
        """The variance of each element [*batch, *event], where a subclass gives it."""
        raise lacking(self, "variance", "sample((1000,)).var(0)")

    def entropy(self) -> Tensor:
        """Return the entropy [*batch], nats, where a subclass gives it."""
        raise lacking(self, "entropy", "-log_prob(sample((1000,))).mean(0)")

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with gradients, where a subclass can."""
        raise NotImplementedError(f"{_named(self)} has no draws with gradients; sample() draws without")


def lacking(distribution: Distribution, what: str, instead: str) -> NotImplementedError:
    """Return the error that says what a distribution has no closed form for, and how to estimate it."""
    return NotImplementedError(f"{_named(distribution)} has no {what} in closed form; an estimate: {instead}")


def _named(distribution: Distribution) -> str:
    return type(distribution).__name__


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


class GaussianMixture(Explained):
    """Σ_c π_c N(loc_c, diag scale_c²) with batch shape [] and event shape [D].

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
        """Σ_c π_c loc_c, [D]."""
        return self.log_weights.exp() @ self.loc

    @property
    def variance(self) -> Tensor:
        """Σ_c π_c (scale_c² + (loc_c − mean)²), [D]."""
        spread = self.scale.square() + (self.loc - self.mean).square()
        return self.log_weights.exp() @ spread

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) [...], nats, for z [..., D].

        The squares are expanded into two matrix products, [..., D] by [D, C]; in float64, so that nothing is lost
        where they cancel.
        """
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
        """Draw a component, then z [*sample_shape, D]; without gradients."""
        index = Categorical(logits=self.log_weights, validate_args=False).sample(sample_shape)
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


def is_diagonal(distribution: Distribution) -> bool:
    """Whether a distribution is a Gaussian of independent dimensions."""
    return isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal)


def kl_by_dimension(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Return KL(q ‖ p), nats: [B, D] in closed form where p factorises over dimensions, else [B, 1].

    For q with correlated dimensions the columns are the terms of the chain rule, E KL(q(z_j|z_<j) ‖ p(z_j)). Where no
    closed form is registered it is the Monte Carlo estimate mean_k [log q(z_k) − log p(z_k)], z [K, B, D].
    """
    if isinstance(q, MultivariateNormal) and is_diagonal(p):
        return _chain_rule(q, p.base_dist)  # type: ignore[attr-defined]
    try:
        if isinstance(q, Independent) and isinstance(p, Independent):
            return _kl_of_elements(q.base_dist, p.base_dist)
        return kl_divergence(q, p).unsqueeze(-1)
    except NotImplementedError:
        return (q.log_prob(z) - p.log_prob(z)).mean(0).unsqueeze(-1)


def _kl_of_elements(q: Distribution, p: Distribution) -> Tensor:
    """Return KL(q ‖ p) of independent elements; fused where p is a fixed Gaussian and the step is not compiled."""
    if not isinstance(q, Normal) or not isinstance(p, Normal) or torch.compiler.is_compiling():
        return kl_divergence(q, p)
    if p.loc.requires_grad or p.scale.requires_grad:
        return kl_divergence(q, p)
    return _DiagonalKL.apply(q.loc, q.scale, p.loc, p.scale)


class _DiagonalKL(torch.autograd.Function):
    """½[r² + d² − 1] − log r, r = σ_q/σ_p, d = (μ_q − μ_p)/σ_p, for p without gradients, in few small operations."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor, other_loc: Tensor, other_scale: Tensor) -> Tensor:
        """Return KL(N(loc, scale²) ‖ N(other_loc, other_scale²)) of each element, nats."""
        ratio, shift = scale / other_scale, (loc - other_loc) / other_scale
        ctx.save_for_backward(ratio, shift, other_scale)
        ctx.shapes = loc.shape, scale.shape
        return torch.addcmul(ratio * ratio, shift, shift).sub_(1.0).mul_(0.5).sub_(ratio.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return d/σ_p and (r − 1/r)/σ_p times the gradient."""
        ratio, shift, other_scale = ctx.saved_tensors
        gradient = gradient / other_scale
        grads = shift * gradient, (ratio - ratio.reciprocal()) * gradient
        loc, scale = (grad.sum_to_size(shape) for grad, shape in zip(grads, ctx.shapes, strict=True))
        return loc, scale, None, None


def _chain_rule(q: MultivariateNormal, p: Normal) -> Tensor:
    """Return ½[(Σ_jj + (μ_j − m_j)²)/s_j² − 1] − log(L_jj/s_j) for each dimension j, Σ = LLᵀ: [B, D]."""
    tril = q.scale_tril
    diagonal = tril.diagonal(dim1=-2, dim2=-1)
    square = (tril.square().sum(-1) + (q.loc - p.loc).square()) / p.scale.square()
    return 0.5 * (square - 1.0) - (diagonal / p.scale).log()


@register_kl(MultivariateNormal, Independent)
def _full_from_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    if not is_diagonal(p):
        raise NotImplementedError
    return _chain_rule(q, p.base_dist).sum(-1)


class Remembering(Explained):
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

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z [*sample_shape, B, D] with gradients, and remember log q(z)."""
        self.last = self.flow.rsample_and_log_prob(torch.Size(sample_shape))
        return self.last[0]

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z), nats; of any other z than the last drawn it takes D passes a transform."""
        return self.last[1] if self.last is not None and z is self.last[0] else self.flow.log_prob(z)


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

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x."""
        return self.shift + self.std * self.base.sample(sample_shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), nats: that of u less Σ log std."""
        return self.base.log_prob((x - self.shift) / self.std) - self.std.log().sum()
