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

from vae_cli.distribution import Explained, Gaussian, kl_by_dimension
from vae_cli.errors import UserError
from vae_cli.model.conv import Conv
from vae_cli.model.layers import Readout, dense, picture_shape
from vae_cli.model.mlp import MLP

FLOOR = 1e-3  # smallest scale of a lower layer


class Ladder(nn.Module):
    """p(x|z_1) p(z_1|z_2) … p(z_L) with q(z_L|x) … q(z_1|x, z_2) (Sønderby et al. 2016).

    A deterministic way up gives each lower layer Gaussian statistics (μ̂, σ̂); on the way down q(z_l|x, z_{l+1}) is
    their precision-weighted product with p(z_l|z_{l+1}) (eq. 16 to 18). The top layer has the posterior and the prior
    of any other model. z is [z_L, …, z_1], the top first.

    Args:
        shape: of one example.
        latent_dim: dimensions of z_L, the top.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
        below: dimensions of z_1 (next to the data), z_2, … below the top.
        hidden: width of the dense layers of each stage, from the data up: one more than `below`.
        depth: dense layers a stage.
        channels: of convolutions between the data and z_1, in place of the first stage; empty for none.
        activation: a key of `layers.ACTIVATIONS`.

    Raises:
        UserError: `hidden` does not fit `below`.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        latent_dim: int,
        condition_dim: int,
        outputs: int,
        below: Sequence[int] = (32,),
        hidden: Sequence[int] = (400, 200),
        depth: int = 1,
        channels: Sequence[int] = (),
        activation: str = "gelu",
    ):
        super().__init__()
        if len(hidden) != len(below) + 1:
            raise UserError(
                f"model.hidden={list(hidden)}: as many widths as stochastic layers are allowed, "
                f"{len(below) + 1} (model.below and the top)"
            )
        if channels:
            picture_shape(shape, "ladder")
        given = {"shape": shape, "condition_dim": condition_dim, "outputs": outputs, "activation": activation}
        kind: Any = Conv if channels else MLP
        stem = {"channels": channels} if channels else {}
        self.body = kind(latent_dim=below[0], hidden=[hidden[0]] * depth, **stem, **given)
        widths = [self.body.features, *hidden[1:]]
        self.up = nn.ModuleList(dense([a, *[b] * depth], activation) for a, b in pairwise(widths))
        self.statistics = nn.ModuleList(Readout(w, 2 * d) for w, d in zip(widths, below, strict=False))
        above = [*below[1:], latent_dim]
        self.down = nn.ModuleList(
            nn.Sequential(dense([d, *[w] * depth], activation), nn.Linear(w, 2 * into))
            for d, w, into in zip(above, hidden[1:], below, strict=True)
        )
        self.features, self.layers, self.lowest = widths[-1], (latent_dim, *reversed(below)), below[0]

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map x [B, *shape] and c [B, C] to the top's features and the statistics of the layers below, [B, F]."""
        h, statistics = self.body.encode(x, c), []
        for statistic, up in zip(self.statistics, self.up, strict=True):
            statistics.append(statistic(h))
            h = up(h)
        return torch.cat([h, *reversed(statistics)], dim=-1)

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]; z_1 alone is seen."""
        return self.body.decode(z[:, -self.lowest :], c)

    def hierarchy(self, posterior: nn.Module, prior: nn.Module) -> tuple[nn.Module, nn.Module]:
        """Turn posterior and prior of the top layer into those of all layers."""
        return HierarchicalPosterior(self, posterior), HierarchicalPrior(self, prior)


class HierarchicalPosterior(nn.Module):
    """Features → q(z_L|x) Π q(z_l|x, z_{l+1})."""

    def __init__(self, model: Ladder, top: Any):
        super().__init__()
        self.top: Any
        self.top, self._model = top, (model,)  # in a tuple, so that its weights are held once

    def head(self, features: Tensor) -> Tensor:
        """Return the parameters of the top's posterior and the statistics of the layers below, [B, P]."""
        width = self._model[0].features
        return torch.cat([self.top.head(features[:, :width]), features[:, width:]], dim=-1)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return q(z|x), batch shape [B] and event shape [D], from its parameters [B, P]."""
        model = self._model[0]
        below = [2 * d for d in model.layers[1:]]
        own, *statistics = parameters.split([parameters.shape[-1] - sum(below), *below], dim=-1)
        return TopDown(self.top.distribution(own), model, [_gaussian(s) for s in statistics])

    def forward(self, features: Tensor) -> Distribution:
        """Map features [B, F] to q(z|x) with batch shape [B] and event shape [D]."""
        return self.distribution(self.head(features))


class HierarchicalPrior(nn.Module):
    """Condition → p(z_L|c) Π p(z_l|z_{l+1})."""

    def __init__(self, model: Ladder, top: nn.Module):
        super().__init__()
        self.top: Any
        self.top, self._model = top, (model,)

    @property
    def initialize(self) -> Callable[..., None]:
        """How the top's prior starts from training examples; there is none where it does not."""
        return self.top.initialize

    def forward(self, c: Tensor | None) -> Distribution:
        """Return p(z|c) with the batch shape of its top and event shape [D]."""
        return TopDown(self.top(c), self._model[0], [None] * len(self._model[0].down))


class TopDown(Explained):
    """A Gaussian for each layer given the one above: p where there are no statistics, q where there are.

    Args:
        top: distribution of z_L.
        model: the ladder.
        statistics: of the layers below the top, from the top down: N(μ̂, σ̂²) [B, D_l], or None.
    """

    has_rsample = True

    def __init__(self, top: Distribution, model: Ladder, statistics: Sequence[Normal | None]):
        super().__init__(top.batch_shape, torch.Size([sum(model.layers)]), validate_args=False)
        self.top, self.model, self.statistics = top, model, statistics

    @property
    def mean(self) -> Tensor:
        """The means of the layers, each given the mean above: [B, D]."""
        z = [self.top.mean]
        for layer in self._below():
            z.append(layer(z[-1]).loc)
        return torch.cat(z, dim=-1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z [*sample_shape, *batch, D] from the top down, with gradients."""
        z = [self.top.rsample(sample_shape) if self.top.has_rsample else self.top.sample(sample_shape)]
        for layer in self._below():
            z.append(layer(z[-1]).rsample())
        return torch.cat(z, dim=-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log of the joint density of all layers, nats."""
        top, pairs = self._split(z)
        below = sum(
            layer(above).log_prob(own).sum(-1) for layer, (above, own) in zip(self._below(), pairs, strict=True)
        )
        return self.top.log_prob(top) + below

    def kl_by_layer(self, p: TopDown, z: Tensor) -> list[Tensor]:
        """Return KL(q ‖ p) of each layer [B, columns], given the layers above it in z [K, B, D]."""
        top, pairs = self._split(z)
        kls = [kl_by_dimension(self.top, p.top, top)]
        for mine, other, (above, _) in zip(self._below(), p._below(), pairs, strict=True):
            kls.append(kl_divergence(mine(above), other(above)).mean(0))
        return kls

    def _split(self, z: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        parts = z.split(list(self.model.layers), dim=-1)
        return parts[0], list(pairwise(parts))

    def _below(self) -> Iterator[Any]:
        """Yield, for each layer below the top, z above → its Gaussian."""
        for down, statistic in zip(reversed(self.model.down), self.statistics, strict=True):
            yield partial(_given_above, down, statistic)


def _given_above(down: nn.Module, statistic: Normal | None, above: Tensor) -> Normal:
    """Return the Gaussian of a layer given z above it [..., D]."""
    outputs = down(above.flatten(0, -2)).unflatten(0, above.shape[:-1])  # a gate splits axis 1
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
