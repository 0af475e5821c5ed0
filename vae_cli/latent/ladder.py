"""Several stochastic layers with top-down inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution, Normal, kl_divergence

from vae_cli.config.types import Activation, Count, SomeWidths
from vae_cli.distribution import Explained, Gaussian, kl_by_dimension
from vae_cli.latent.base import Latent, Layout
from vae_cli.model.layers import Readout, dense
from vae_cli.system.errors import UserError

FLOOR = 1e-3  # smallest scale of a lower layer


class Ladder(Latent):
    """p(x|z_1) p(z_1|z_2) … p(z_L) with q(z_L|x) … q(z_1|x, z_2) (Sønderby et al. 2016).

    A deterministic way up gives each lower layer Gaussian statistics (μ̂, σ̂); on the way down q(z_l|x, z_{l+1}) is
    their precision-weighted product with p(z_l|z_{l+1}) (eq. 16 to 18). The top layer has the posterior and the prior
    of any other latent. z is [z_L, …, z_1], the top first; the model decodes z_1.

    Args:
        model: between the data and z_1.
        latent_dim: dimensions of z_L, the top.
        posterior: (head, latent_dim) → q(z_L|x,c).
        prior: (latent, latent_dim) → p(z_L|c).
        below: dimensions of z_1 (next to the data), z_2, … below the top.
        hidden: width of the dense layers between z_1 and z_2, z_2 and z_3, …: as many as `below`.
        depth: dense layers a stage.
        activation: a key of `layers.ACTIVATIONS`.

    Raises:
        UserError: `hidden` does not fit `below`.

    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose("latent=ladder", "latent.below=[32]", "model.latent_dim=20"), Spec((64,), 2, 0.0, 1.0))
    >>> vae.latent.layout.sizes, vae.latent.decoded(vae.latent.generate(5, None)).shape
    ([20, 32], torch.Size([5, 32]))
    """

    gives = ("flat",)

    @staticmethod
    def decoded_shape(*, below: Sequence[int]) -> tuple[int | None, ...]:
        """Return the shape of the code that the model decodes: that of z_1."""
        return (below[0],)

    def __init__(
        self,
        *,
        model: Any,
        latent_dim: int,
        posterior: Callable[..., Any],
        prior: Callable[..., Any],
        below: SomeWidths,
        hidden: SomeWidths,
        depth: Count,
        activation: Activation,
    ):
        super().__init__(Layout(tuple((dim,) for dim in (latent_dim, *reversed(below)))))
        if len(hidden) != len(below):
            raise UserError(
                f"latent.hidden={list(hidden)}: as many widths as there are layers below the top are allowed, "
                f"{len(below)} (latent.below)"
            )
        widths = [model.features, *hidden]
        self.up = nn.ModuleList(dense([a, *[b] * depth], activation) for a, b in pairwise(widths))
        self.statistics = nn.ModuleList(Readout(w, 2 * d) for w, d in zip(widths, below, strict=False))
        self.down = nn.ModuleList(
            nn.Sequential(dense([d, *[w] * depth], activation), nn.Linear(w, 2 * into))
            for d, w, into in zip([*below[1:], latent_dim], hidden, below, strict=True)
        )
        self.below = [2 * d for d in reversed(below)]
        self.posterior = posterior(head=partial(_head, widths[-1], latent_dim), latent_dim=latent_dim)
        self.prior = prior(self, latent_dim=latent_dim)

    def parameters_of(self, h: Tensor) -> Tensor:
        """Return the parameters of the top's posterior, then the statistics of the layers below, [B, P]."""
        statistics = []
        for statistic, up in zip(self.statistics, self.up, strict=True):
            statistics.append(statistic(h))
            h = up(h)
        return torch.cat([self.posterior.head(h), *reversed(statistics)], dim=-1)

    def top(self, h: Tensor) -> Distribution:
        """Return q(z_L|x,c) for features h."""
        for up in self.up:
            h = up(h)
        return self.posterior(h)

    def q(self, parameters: Tensor) -> Distribution:
        """Return q(z|x,c), batch shape [B] and event shape [D], from its parameters [B, P]."""
        own, *statistics = parameters.split([parameters.shape[-1] - sum(self.below), *self.below], dim=-1)
        top = self.posterior.distribution(own)
        return TopDown(top, self.layout, self.down, [_gaussian(each) for each in statistics])

    def p(self, c: Tensor | None) -> Distribution:
        """Return p(z|c) with the batch shape of its top and event shape [D]."""
        return TopDown(self.prior(c), self.layout, self.down, [None] * len(self.down))

    def kl_by_layer(self, q: Any, p: Any, z: Tensor) -> list[Tensor]:
        """Return KL(q ‖ p) of each layer [B, columns], given the layers above it in z [K, B, D]."""
        top, pairs = q.split(z)
        kls = [kl_by_dimension(q.top, p.top, top)]
        for mine, other, (above, _) in zip(q.below(), p.below(), pairs, strict=True):
            kls.append(kl_divergence(mine(above), other(above)).mean(0))
        return kls

    def decoded(self, z: Tensor) -> Tensor:
        """Return z_1 of codes [..., D]."""
        return z[..., -self.layout.sizes[-1] :]


def _head(width: int, size: int, outputs: int, extra: int = 0) -> nn.Module:
    return Readout(width, outputs * size + extra)


class TopDown(Explained):
    """A Gaussian for each layer given the one above: p where there are no statistics, q where there are.

    Args:
        top: distribution of z_L.
        layout: of the layers.
        down: of each layer below the top, from the data up: z above → its location and raw scale.
        statistics: of the same layers, from the top down: N(μ̂, σ̂²) [B, D_l], or None.
    """

    has_rsample = True

    def __init__(self, top: Distribution, layout: Layout, down: nn.ModuleList, statistics: Sequence[Normal | None]):
        super().__init__(top.batch_shape, torch.Size([layout.size]), validate_args=False)
        self.top, self.layout, self.down, self.statistics = top, layout, down, statistics

    def expand(self, batch_shape: Any, _instance: Any = None) -> TopDown:
        """Return the same distribution with a larger batch."""
        wide = [each and each.expand((*batch_shape, each.batch_shape[-1])) for each in self.statistics]
        return TopDown(self.top.expand(torch.Size(batch_shape)), self.layout, self.down, wide)

    @property
    def mean(self) -> Tensor:
        """The means of the layers, each given the mean above: [B, D]."""
        z = [self.top.mean]
        for layer in self.below():
            z.append(layer(z[-1]).loc)
        return torch.cat(z, dim=-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z [*sample_shape, *batch, D] from the top down, with gradients."""
        z = [self.top.rsample(sample_shape) if self.top.has_rsample else self.top.sample(sample_shape)]
        for layer in self.below():
            z.append(layer(z[-1]).rsample())
        return torch.cat(z, dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log of the joint density of all layers, nats."""
        top, pairs = self.split(z)
        below = sum(layer(above).log_prob(own).sum(-1) for layer, (above, own) in zip(self.below(), pairs, strict=True))
        return self.top.log_prob(top) + below

    def split(self, z: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Return the top layer of z [..., D], and each layer below with the one above it: (above, own)."""
        parts = z.split(self.layout.sizes, dim=-1)
        return parts[0], list(pairwise(parts))

    def below(self) -> Iterator[Any]:
        """Yield, for each layer below the top, z above → its Gaussian."""
        for down, statistic in zip(reversed(self.down), self.statistics, strict=True):
            yield partial(_given_above, down, statistic)


def _given_above(down: nn.Module, statistic: Normal | None, above: Tensor) -> Normal:
    """Return the Gaussian of a layer given z above it [..., D]."""
    outputs = down(above.reshape(-1, above.shape[-1])).view(*above.shape[:-1], -1)  # a gate splits axis 1
    return _product(_gaussian(outputs), statistic)


def _gaussian(outputs: Tensor) -> Normal:
    loc, raw = outputs.chunk(2, dim=-1)
    return Gaussian(loc, F.softplus(raw) + FLOOR, validate_args=False)


def _product(p: Normal, statistic: Normal | None) -> Normal:
    """Return the normalised product of two Gaussians: precisions add up, means weigh by them."""
    if statistic is None:
        return p
    mine, other = p.scale**-2, statistic.scale**-2
    total = mine + other
    return Gaussian((p.loc * mine + statistic.loc * other) / total, total**-0.5, validate_args=False)
