"""A density on the real line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.batch import mean_of_batch
from vae_cli.config.types import Positive, Scale
from vae_cli.likelihood.base import Elements, Likelihood, split

PACE = 10.0  # speed of a learned σ of each element: an optimizer's step of 0.001 changes it by one per cent


class GaussianElements(Elements):
    """N(x | loc, e^(2·log_scale))."""

    has_rsample = True
    batched = ("loc", "log_scale")

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

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw loc + σ·ε, with gradients."""
        noise = torch.randn(self._extended_shape(sample_shape), device=self.loc.device)
        return self.loc + self.scale * noise

    @staticmethod
    def fit(error: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the scale of highest likelihood for (known) errors x − loc: their root mean square."""
        return mean_of_batch(error.square(), known).clamp(min=1e-12).sqrt()


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

    >>> likelihood = Gaussian(scale=2.0, min_scale=0.01, shape=(4,), center=None, spread=None)
    >>> p = likelihood(torch.zeros(5, 1, 4), 1)
    >>> p.stddev[0].tolist(), round(float(p.log_prob(torch.zeros(4))[0]), 4)  # −4 (log 2 + ½ log 2π)
    ([2.0, 2.0, 2.0, 2.0], -6.4483)
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
        scale: Scale,
        min_scale: Positive,
        shape: Sequence[int],
        center: Sequence[float] | None,
        spread: Sequence[float] | None,
    ):
        super().__init__()
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

    def forward(self, outputs: Tensor, event_dims: int, c: Tensor | None = None) -> Distribution:
        """Map locations (and raw log-scales) [..., P, *shape] to p(x|z)."""
        loc, *rest = split(outputs, event_dims)
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

    @property
    def joins(self) -> bool:  # type: ignore[override]
        """Whether log p(x|z) of an example depends on the others of its batch: an optimal σ does."""
        return self.scale == "optimal"

    def shown(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Return x in units of the data's standard deviations."""
        return super().shown(x if self.spread is None else (x - self.center) / self.spread, known)

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
        return self._fitted(x).log_prob(x)

    def log_prob_of_known(self, x: Tensor, known: Tensor) -> Tensor:
        """Return log p of the known elements of x [*batch], likewise."""
        return self._fitted(x, known).log_prob_of_known(x, known)

    def _fitted(self, x: Tensor, known: Tensor | None = None) -> GaussianElements:
        scale = self.likelihood.running_scale
        if not self.frozen:
            scale = self.likelihood.elements.fit(x - self.loc, known).clamp(min=math.exp(self.likelihood.floor))
            self.likelihood.observe(scale)
        return self._elements(scale.log())

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

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with the frozen scale, with gradients."""
        return self._elements(self.log_scale).rsample(sample_shape)

    def _elements(self, log_scale: Tensor) -> GaussianElements:
        return self.likelihood.elements(self.loc, log_scale, len(self.event_shape))
