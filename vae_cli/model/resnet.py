"""Residual blocks with group normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import gcd

from torch import Tensor, nn

from vae_cli.config.types import Activation, Count, SomeWidths
from vae_cli.model.grid import GridModel
from vae_cli.model.layers import ACTIVATIONS, Condition, ConvReadout, halvings, join, picture_shape, width


class Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), pre-activation (He et al. 2016b); a 1×1 map where channels change."""

    def __init__(self, n_in: int, n_out: int, activation: str):
        super().__init__()
        self.skip = nn.Identity() if n_in == n_out else nn.Conv2d(n_in, n_out, 1)
        self.body = nn.Sequential(*_layer(n_in, n_out, activation), *_layer(n_out, n_out, activation))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, C', H, W]."""
        return self.skip(x) + self.body(x)


def _layer(n_in: int, n_out: int, activation: str, kind: type[nn.Conv2d] = nn.Conv2d) -> list[nn.Module]:
    """Normalise, activate, convolve; a gate doubles its input first, by a 1×1 map."""
    grown = width(n_in, activation)
    gate = [nn.Conv2d(n_in, grown, 1)] if grown != n_in else []
    return [
        nn.GroupNorm(gcd(8, n_in), n_in),
        *gate,
        ACTIVATIONS[activation](),
        kind(n_in, n_out, 3, padding=1),
    ]


class ResNet(GridModel):
    """Stages of residual blocks; each halves height and width, and the decoder mirrors them.

    Any height, width and number of channels: the output has exactly the shape of the input.

    Args:
        shape: [H, W] or [C, H, W] of one example.
        shown: the same of what the encoder is shown of it.
        latent_shape: of one code: (D,), or (C, None, None) for C channels on the grid of the last stage.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
        channels: of the encoder's stages.
        blocks: residual blocks a stage.
        activation: a key of `layers.ACTIVATIONS`.

    Raises:
        UserError: the data are no pictures, or too small for so many stages.

    >>> import torch
    >>> model = ResNet(
    ...     shape=(9, 7), shown=(9, 7), latent_shape=(3,), condition_dim=0, outputs=2,
    ...     channels=[8, 8], blocks=1, activation="silu",
    ... )
    >>> h = model.encode(torch.zeros(5, 9, 7), None)
    >>> h.shape, model.decode(torch.zeros(5, 3), None).shape
    (torch.Size([5, 16]), torch.Size([5, 2, 9, 7]))
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        shown: Sequence[int],
        latent_shape: Sequence[int | None],
        condition_dim: int,
        outputs: int,
        channels: SomeWidths,
        blocks: Count,
        activation: Activation,
    ):
        first, height, wide = picture_shape(shape, "resnet")
        sizes = halvings((height, wide), len(channels), "resnet")
        super().__init__(shape=shape, outputs=outputs, channels=channels[-1], grid=sizes[-1], latent_shape=latent_shape)
        self.picture = picture_shape(shown, "resnet")
        self.first = nn.Conv2d(self.picture[0], channels[0], 3, padding=1)
        self.condition = Condition(condition_dim, channels[0])
        self.down = _down(channels, blocks, activation)
        if self.on_grid:
            self.expand_grid(condition_dim)
        else:
            self.expand = nn.Linear(self.latent_size + condition_dim, self.features)  # type: ignore[assignment]
        self.up = _up(channels, sizes, blocks, activation)
        self.readout = nn.Sequential(*_layer(channels[0], first * outputs, activation, ConvReadout))

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map x [B, *shown] and c [B, C] to features [B, F], or [B, F, h, w] on a grid."""
        h = self.down(self.condition(self.first(x.view(-1, *self.picture)), c))
        return h if self.on_grid else h.flatten(1)

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        h = self.from_grid(z, c) if self.on_grid else self.expand(join(z, c)).view(-1, *self.on_features)
        return self.readout(self.up(h)).view(-1, self.outputs, *self.shape)


def _down(channels: Sequence[int], blocks: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise([channels[0], *channels]):
        layers += [Block(n_in if k == 0 else n_out, n_out, activation) for k in range(blocks)]
        layers.append(nn.Conv2d(n_out, n_out, 4, stride=2, padding=1))
    return nn.Sequential(*layers)


def _up(channels: Sequence[int], sizes: list[tuple[int, int]], blocks: int, activation: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for (n_out, n_in), size in zip(pairwise([channels[0], *channels]), sizes[:-1], strict=True):
        stage = [nn.Upsample(size=size), nn.Conv2d(n_in, n_out, 3, padding=1)]
        layers = [*stage, *(Block(n_out, n_out, activation) for _ in range(blocks)), *layers]
    return nn.Sequential(*layers)
