"""Likelihoods p(x|z): decoder outputs become a distribution over x.

A likelihood owns its activation and the support of x. `outputs` is the number P of decoder outputs for each
element of x; calling it maps outputs [..., P, *shape] to a `torch.distributions.Distribution` with event shape
`shape`, whose log-probabilities are sums over the elements, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution

from vae_cli import parallel
from vae_cli.distribution import Explained

PACE = 10.0  # how fast a σ of each element moves: an optimizer's step of 0.001 is one per cent of it
NEAREST = 16  # edges on either side of a logistic narrower than a level; e^−16 of it is beyond them


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

    def shown(self, x: Tensor) -> Tensor:
        """Return what the encoder is shown of x [B, *shape]."""
        return x


def _split(outputs: Tensor, event_dims: int) -> tuple[Tensor, ...]:
    axis = -event_dims - 1
    if outputs.shape[axis] == 1:  # a view whose gradient is one too
        return (outputs.squeeze(axis),)
    return outputs.unbind(axis)


class _BernoulliLogProb(torch.autograd.Function):
    """Σ x·l − softplus(l) over the last `dims` axes in few passes over memory; its gradient in l is x − σ(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, dims: int) -> Tensor:
        """Return log p(x) [*batch] of logits and x that broadcast to [*batch, *event]."""
        ctx.save_for_backward(logits, x)
        ctx.dims = dims
        terms = torch.addcmul(F.softplus(logits), x, logits, value=-1.0)
        return terms.flatten(terms.ndim - dims).sum(-1).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return (x − σ(l)) times the gradient of each sum; summed over what the logits were broadcast to."""
        logits, x = ctx.saved_tensors
        sigma = logits.sigmoid()
        same = torch.broadcast_shapes(x.shape, logits.shape) == logits.shape
        error = torch.sub(x, sigma, out=sigma if same else None)
        return error.mul_(gradient[(..., *[None] * ctx.dims)]).sum_to_size(logits.shape), None, None


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
        if plain or self.logits.dtype != x.dtype:
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
        """Draw from [0, 1] by the inverse of F(x) = (e^(l·x) − 1) / (e^l − 1), for l > 0 by 1 − x under −l."""
        u = torch.rand(self._extended_shape(sample_shape), dtype=self.logits.dtype, device=self.logits.device)
        negative = -self.logits.abs().clamp(min=1e-6)  # closer to 0 it is uniform to float precision
        x = torch.log1p(u * torch.expm1(negative)) / negative
        return torch.where(self.logits > 0.0, 1.0 - x, x)

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
        scale: `per_pixel`: the decoder gives each element its log σ; `per_element`: a learned σ for each element,
            the same for every z; `shared`: one learned σ; `optimal`: σ-VAE (Rybkin et al. 2021), σ² is the mean
            squared error of the batch in training, with its gradient, and its running mean in evaluation; a number:
            σ itself.
        min_scale: the floor m of σ; a learned σ approaches it smoothly: log σ = log m + softplus(r − log m).
        shape: of x.
        center: [D] mean of each element of data in units of their own, or None where 0 will do.
        spread: [D] their standard deviation, or None where 1 will do. The network's outputs and what the encoder is
            shown count in it, so that steps fit the data; x, μ and σ stay in the data's own units.
    """

    elements: type[GaussianElements] = GaussianElements
    center: Tensor
    spread: Tensor | None
    log_scale: Tensor
    running_scale: Tensor
    seen: Tensor

    def __init__(
        self,
        *,
        scale: str | float = "per_pixel",
        min_scale: float = 0.01,
        shape: Sequence[int] = (),
        center: Sequence[float] | None = None,
        spread: Sequence[float] | None = None,
    ):
        super().__init__()
        if scale == "per_element" and not shape:
            raise ValueError("scale=per_element needs the shape of x")
        self.scale, self.floor = scale, math.log(min_scale)
        self.outputs = 2 if scale == "per_pixel" else 1
        for name, values in (("center", center), ("spread", spread)):
            self.register_buffer(name, None if values is None else torch.tensor(values).view(*shape), persistent=False)
        if scale in ("shared", "per_element"):
            self.raw_scale = nn.Parameter(torch.zeros(() if scale == "shared" else tuple(shape)))
        elif scale == "optimal":
            self.register_buffer("running_scale", torch.ones(()))
            self.register_buffer("seen", torch.zeros(()))
        elif not isinstance(scale, str):
            self.register_buffer("log_scale", torch.tensor(math.log(scale)))

    def forward(self, outputs: Tensor, event_dims: int) -> Distribution:
        """Map locations (and raw log-scales) [..., P, *shape] to p(x|z)."""
        loc, *rest = _split(outputs, event_dims)
        loc = loc if self.spread is None else self.center + self.spread * loc
        if self.scale == "optimal":
            return OptimalScale(self, loc, event_dims)
        return self.elements(loc, self._log_scale(*rest), event_dims)

    def _log_scale(self, raw: Tensor | None = None) -> Tensor:
        """Return log σ, from raw values of the decoder, of the likelihood itself, or fixed."""
        if not isinstance(self.scale, str):
            return self.log_scale
        if raw is None:
            raw = self.raw_scale if self.scale == "shared" else PACE * self.raw_scale
        if self.spread is not None:
            raw = raw + (self.spread.square().mean().sqrt() if self.scale == "shared" else self.spread).log()
        return self.floor + F.softplus(raw - self.floor)

    def shown(self, x: Tensor) -> Tensor:
        """Return x in units of the data's standard deviations."""
        return x if self.spread is None else (x - self.center) / self.spread

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
        shape = torch.broadcast_shapes(level.shape, self.logits.shape[:-1])
        chosen = self.logits.expand(*shape, -1).gather(-1, level.expand(shape).unsqueeze(-1)).squeeze(-1)
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
