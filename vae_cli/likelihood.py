"""Likelihoods p(x|z): decoder outputs become a distribution over x.

A likelihood owns its activation and the support of x. `outputs` is the number P of decoder outputs for each
element of x; calling it maps outputs [..., P, *shape] to a `torch.distributions.Distribution` with event shape
`shape`, whose log-probabilities are sums over the elements, in nats.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import ContinuousBernoulli as TorchContinuousBernoulli
from torch.distributions import Distribution

from vae_cli import parallel
from vae_cli.distribution import Explained


class Elements(Explained):
    """A distribution over x that is independent from element to element given z.

    Subclasses give `element_log_prob`, `mean` and `sample`, and `mode`, `variance` and `element_entropy` where there
    is a closed form; the sum over elements is taken here alone.
    """

    def __init__(self, like: Tensor, event_dims: int):
        """Take the batch and event shape from a tensor [*batch, *event]."""
        split = like.ndim - event_dims
        super().__init__(like.shape[:split], like.shape[split:], validate_args=False)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return log p of each element [*batch, *event], nats."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) [*batch], nats: the sum over elements."""
        return self._summed(self.element_log_prob(x))

    def element_entropy(self) -> Tensor:
        """Return the entropy of each element [*batch, *event], nats."""
        return super().entropy()

    def entropy(self) -> Tensor:
        """Return the entropy [*batch], nats: the sum over elements."""
        return self._summed(self.element_entropy())

    def _summed(self, terms: Tensor) -> Tensor:
        return terms.flatten(terms.ndim - len(self.event_shape)).sum(-1)


class Likelihood(nn.Module):
    """Base of the likelihoods.

    Attributes:
        support: what x may be: `binary`, `unit` ([0, 1]), `levels` (k / (L − 1)) or `real`.
        discrete: whether log p(x) is the logarithm of a mass, not of a density.
        outputs: P, decoder outputs for each element.
    """

    support = "real"
    discrete = False
    outputs = 1

    def forward(self, outputs: Tensor, event_dims: int) -> Distribution:
        """Map decoder outputs [..., P, *shape] to p(x|z) with event shape `shape` of `event_dims` dimensions."""
        raise NotImplementedError


def _split(outputs: Tensor, event_dims: int) -> tuple[Tensor, ...]:
    axis = -event_dims - 1
    if outputs.shape[axis] == 1:  # a view whose gradient is one too
        return (outputs.squeeze(axis),)
    return outputs.unbind(axis)


class _BernoulliLogProb(torch.autograd.Function):
    """Σ x·l − softplus(l) over the last `dims` axes in few passes over memory; its gradient in l is x − σ(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, dims: int) -> Tensor:
        """Return log p(x) [*batch] of logits [*batch, *event] and x that broadcasts against them."""
        ctx.save_for_backward(logits, x)
        ctx.dims = dims
        terms = torch.addcmul(F.softplus(logits), x, logits, value=-1.0)
        return terms.flatten(terms.ndim - dims).sum(-1).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return (x − σ(l)) times the gradient of each sum."""
        logits, x = ctx.saved_tensors
        sigma = logits.sigmoid()
        return torch.sub(x, sigma, out=sigma).mul_(gradient[(..., *[None] * ctx.dims)]), None, None


class BernoulliElements(Elements):
    """Bernoulli with logits l: log p(x) = x·l − softplus(l). Values between 0 and 1 give the cross-entropy."""

    def __init__(self, logits: Tensor, event_dims: int):
        super().__init__(logits, event_dims)
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        """σ(l)."""
        return self.logits.sigmoid()

    @property
    def mode(self) -> Tensor:
        """1 where l > 0, else 0."""
        return (self.logits > 0).to(self.logits.dtype)

    @property
    def variance(self) -> Tensor:
        """σ(l) σ(−l)."""
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    def element_entropy(self) -> Tensor:
        """Return −log p at the mean, which is −E[log p]: log p is linear in x."""
        return -self.element_log_prob(self.mean)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return x·l − softplus(l)."""
        return x * self.logits - F.softplus(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) [*batch], nats: fused where x asks for no gradient and the step is not compiled."""
        plain = type(self) is not BernoulliElements or x.requires_grad or torch.compiler.is_compiling()
        broadcast = x.ndim <= self.logits.ndim and self.logits.dtype == x.dtype
        if plain or not broadcast:
            return super().log_prob(x)
        return _BernoulliLogProb.apply(self.logits, x, len(self.event_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw 0 or 1 with probability σ(l)."""
        return torch.bernoulli(self.mean.expand(self._extended_shape(sample_shape)))


class Bernoulli(Likelihood):
    """Binary data: one logit for each element, never a clamped probability."""

    support = "binary"
    discrete = True

    def forward(self, outputs: Tensor, event_dims: int) -> Distribution:
        """Map logits [..., 1, *shape] to p(x|z)."""
        return BernoulliElements(_split(outputs, event_dims)[0], event_dims)

    def outputs_for(self, mean: Tensor) -> Tensor:
        """Return the outputs [1, *shape] whose mean is the given one [*shape], within (0.001, 0.999)."""
        return torch.logit(mean.clamp(0.001, 0.999)).unsqueeze(0)


class ContinuousBernoulliElements(BernoulliElements):
    """p(x) = C(l) exp(x·l) / (1 + exp l) with log C(l) = log(l / tanh(l/2)), a density on [0, 1]."""

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

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw from [0, 1]."""
        return TorchContinuousBernoulli(logits=self.logits, validate_args=False).sample(sample_shape)

    def _safe_logits(self) -> tuple[Tensor, Tensor]:
        small = self.logits.abs() < 0.1
        return small, torch.where(small, torch.ones_like(self.logits), self.logits)


class ContinuousBernoulli(Likelihood):
    """A density on [0, 1] (Loaiza-Ganem & Cunningham 2019): one logit for each element."""

    support = "unit"

    def forward(self, outputs: Tensor, event_dims: int) -> Distribution:
        """Map logits [..., 1, *shape] to p(x|z)."""
        return ContinuousBernoulliElements(_split(outputs, event_dims)[0], event_dims)


class GaussianElements(Elements):
    """N(x | loc, e^(2·log_scale))."""

    def __init__(self, loc: Tensor, log_scale: Tensor, event_dims: int):
        super().__init__(loc, event_dims)
        self.loc, self.log_scale = loc, log_scale

    @property
    def mean(self) -> Tensor:
        """The location."""
        return self.loc

    @property
    def mode(self) -> Tensor:
        """The location."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """σ²."""
        return self.scale.square()

    def element_entropy(self) -> Tensor:
        """Return log σ + ½ log 2πe."""
        return self.scale.log() + 0.5 * math.log(2.0 * math.pi * math.e)

    @property
    def scale(self) -> Tensor:
        """σ of each element."""
        return self.log_scale.exp().expand_as(self.loc)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return −½((x − loc)/σ)² − log σ − ½ log 2π."""
        z = (x - self.loc) * torch.exp(-self.log_scale)
        return -0.5 * z * z - self.log_scale - 0.5 * math.log(2.0 * math.pi)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw loc + σ·ε."""
        noise = torch.randn(self._extended_shape(sample_shape), device=self.loc.device)
        return self.loc + self.scale * noise

    @staticmethod
    def fit(error: Tensor) -> Tensor:
        """Return the scale of highest likelihood for errors x − loc: their root mean square."""
        return parallel.mean(error.square().mean()).clamp(min=1e-12).sqrt()


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

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw loc + b·ε, ε the difference of two exponentials."""
        noise = torch.empty(2, *self._extended_shape(sample_shape), device=self.loc.device).exponential_()
        return self.loc + self.scale * (noise[0] - noise[1])

    @staticmethod
    def fit(error: Tensor) -> Tensor:
        """Return the scale of highest likelihood for errors x − loc: their mean absolute value."""
        return parallel.mean(error.abs().mean())


class Gaussian(Likelihood):
    """N(x | μ(z), σ²) on the real line.

    Args:
        scale: `per_pixel`: the decoder gives each element its log σ; `shared`: one learned σ; `optimal`: σ-VAE
            (Rybkin et al. 2021), σ² is the mean squared error of the batch in training, with its gradient, and its
            running mean in evaluation; a number: σ itself.
        min_scale: the floor m of σ; a learned σ approaches it smoothly: log σ = log m + softplus(r − log m).
    """

    elements: type[GaussianElements] = GaussianElements
    log_scale: Tensor
    running_scale: Tensor
    seen: Tensor

    def __init__(self, *, scale: str | float = "per_pixel", min_scale: float = 0.01):
        super().__init__()
        self.scale, self.floor = scale, math.log(min_scale)
        self.outputs = 2 if scale == "per_pixel" else 1
        if scale == "shared":
            self.raw_scale = nn.Parameter(torch.zeros(()))
        elif scale == "optimal":
            self.register_buffer("running_scale", torch.ones(()))
            self.register_buffer("seen", torch.zeros(()))
        elif not isinstance(scale, str):
            self.register_buffer("log_scale", torch.tensor(math.log(scale)))

    def forward(self, outputs: Tensor, event_dims: int) -> Distribution:
        """Map locations (and raw log-scales) [..., P, *shape] to p(x|z)."""
        loc, *rest = _split(outputs, event_dims)
        if self.scale == "optimal":
            return OptimalScale(self, loc, event_dims)
        raw = rest[0] if rest else self.raw_scale if self.scale == "shared" else None
        log_scale = self.log_scale if raw is None else self.floor + F.softplus(raw - self.floor)
        return self.elements(loc, log_scale, event_dims)

    @torch.no_grad()
    def observe(self, scale: Tensor) -> None:
        """Keep a running mean of the batches' optimal scales, for evaluation."""
        self.seen += 1.0
        rate = torch.clamp(1.0 / self.seen, min=0.01)
        scale = torch.where(scale.isfinite(), scale, self.running_scale)
        self.running_scale += rate * (scale - self.running_scale)


class OptimalScale(GaussianElements):
    """Elements whose scale is fitted to the x it is asked about (training) or frozen (evaluation)."""

    def __init__(self, likelihood: Gaussian, loc: Tensor, event_dims: int):
        super().__init__(loc, likelihood.running_scale.log(), event_dims)
        self.likelihood, self.frozen = likelihood, not likelihood.training

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) [*batch] under the scale of highest likelihood for this batch, or the frozen one."""
        scale = self.likelihood.running_scale
        if not self.frozen:
            scale = self.likelihood.elements.fit(x - self.loc).clamp(min=math.exp(self.likelihood.floor))
            self.likelihood.observe(scale)
        return self._elements(scale.log()).log_prob(x)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return log p of each element under the frozen scale."""
        return self._elements(self.log_scale).element_log_prob(x)

    @property
    def variance(self) -> Tensor:
        """The variance under the frozen scale."""
        return self._elements(self.log_scale).variance

    def element_entropy(self) -> Tensor:
        """Return the entropy of each element under the frozen scale."""
        return self._elements(self.log_scale).element_entropy()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with the frozen scale."""
        return self._elements(self.log_scale).sample(sample_shape)

    def _elements(self, log_scale: Tensor) -> GaussianElements:
        return self.likelihood.elements(self.loc, log_scale, len(self.event_shape))


class Laplace(Gaussian):
    """Laplace(x | μ(z), b) on the real line; the same settings as `Gaussian`, b in place of σ."""

    elements = LaplaceElements


class DiscretizedLogisticElements(Elements):
    """A mixture of logistics integrated over bins of width 1/(L − 1); the edge bins take the whole tails.

    `logits`, `loc` and `log_scale` are [M, *batch, *event].
    """

    def __init__(self, logits: Tensor, loc: Tensor, log_scale: Tensor, levels: int, event_dims: int):
        super().__init__(loc[0], event_dims)
        self.logits, self.loc, self.log_scale, self.levels = logits, loc, log_scale, levels

    @property
    def mean(self) -> Tensor:
        """The mean of the mixture cut to [0, 1]: Σ_m π_m (1 − ∫₀¹ F_m); rounding to levels moves it by O(1/L²)."""
        scale = self.log_scale.exp()
        area = scale * (F.softplus((1.0 - self.loc) / scale) - F.softplus(-self.loc / scale))
        return (self.logits.softmax(0) * (1.0 - area)).sum(0)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return logsumexp_m [log π_m + log(σ(a) − σ(b))], a and b the standardised edges of the bin.

        log(σ(a) − σ(b)) = log σ(a) + log σ(−b) + log(1 − e^(b − a)), exact in the far tails.
        """
        half, precision = 0.5 / (self.levels - 1), torch.exp(-self.log_scale)
        upper, lower = (x + half - self.loc) * precision, (x - half - self.loc) * precision
        below, above = F.logsigmoid(upper), F.logsigmoid(-lower)
        inside = below + above + torch.log(-torch.expm1(-2.0 * half * precision))
        mass = torch.where(x < half, below, torch.where(x > 1.0 - half, above, inside))
        return mass[0] if len(mass) == 1 else torch.logsumexp(self.logits.log_softmax(0) + mass, 0)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component, then a logistic value, rounded to the nearest level."""
        shape = self._extended_shape(sample_shape)
        gumbel = -torch.empty(len(self.loc), *shape, device=self.loc.device).exponential_().log()
        spread = self.logits.view(len(self.loc), *[1] * len(sample_shape), *self.loc.shape[1:])
        choice = (spread + gumbel).argmax(0, keepdim=True)
        loc, log_scale = (
            t.view(spread.shape).expand_as(gumbel).gather(0, choice)[0] for t in (self.loc, self.log_scale)
        )
        u = torch.rand(shape, device=loc.device).clamp(1e-7, 1.0 - 1e-7)
        value = loc + log_scale.exp() * torch.logit(u)
        return (value.clamp(0.0, 1.0) * (self.levels - 1)).round() / (self.levels - 1)


class DiscretizedLogistic(Likelihood):
    """A mass on L grey levels (Salimans et al. 2017, without their coupling of colours).

    Args:
        levels: L.
        mixtures: M, logistics for each element.
    """

    support = "levels"
    discrete = True

    def __init__(self, *, levels: int, mixtures: int = 1):
        super().__init__()
        self.levels, self.mixtures = levels, mixtures
        self.outputs = 3 * mixtures if mixtures > 1 else 2

    def forward(self, outputs: Tensor, event_dims: int) -> Distribution:
        """Map locations, log-scales (and mixture logits) [..., P, *shape] to p(x|z)."""
        stacked = outputs.movedim(-event_dims - 1, 0)  # [P, ..., *shape]
        loc, raw, *rest = stacked.split(self.mixtures)
        spread = torch.linspace(0.0, 1.0, self.mixtures + 2, device=loc.device)[1:-1]  # components start apart
        loc = loc + spread.view(-1, *[1] * (loc.ndim - 1))
        log_scale = (-9.0 + F.softplus(raw + 7.0)).clamp(max=5.0)  # e^−2 at the start, within e^−9 … e^5
        logits = rest[0] if rest else torch.zeros_like(loc)
        return DiscretizedLogisticElements(logits, loc, log_scale, self.levels, event_dims)


class CategoricalElements(Elements):
    """A mass on L grey levels; `logits` are [*batch, *event, L]."""

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
        level = level.expand(torch.broadcast_shapes(level.shape, self.logits.shape[:-1]))
        chosen = self.logits.expand(*level.shape, -1).gather(-1, level.unsqueeze(-1)).squeeze(-1)
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
    """

    support = "levels"
    discrete = True

    def __init__(self, *, levels: int):
        super().__init__()
        self.outputs = levels

    def forward(self, outputs: Tensor, event_dims: int) -> Distribution:
        """Map logits [..., L, *shape] to p(x|z)."""
        return CategoricalElements(outputs.movedim(-event_dims - 1, -1), event_dims)
