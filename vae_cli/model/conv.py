"""Strided convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_cli.config.types import Activation, SomeWidths, Widths
from vae_cli.model.grid import GridModel
from vae_cli.model.layers import (
    ACTIVATIONS,
    Condition,
    ConvTranspose,
    ConvTransposeReadout,
    dense,
    halvings,
    join,
    picture_shape,
    width,
)
from vae_cli.system.errors import UserError


class Conv(GridModel):
    """4×4 convolutions of stride 2, then dense layers; the decoder mirrors them with transposed convolutions.

    Any height, width and number of channels: the output has exactly the shape of the input.

    Args:
        shape: [H, W] or [C, H, W] of one example.
        shown: the same of what the encoder is shown of it.
        latent_shape: of one code: (D,), or (C, None, None) for C channels on the grid of the last stage.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
        channels: of the encoder's stages.
        hidden: widths of the dense layers between the last stage and z; may be empty.
        activation: a key of `layers.ACTIVATIONS`.

    Raises:
        UserError: the data are no pictures, or too small for so many stages.

    >>> import torch
    >>> model = Conv(
    ...     shape=(9, 7), shown=(9, 7), latent_shape=(3,), condition_dim=0, outputs=2,
    ...     channels=[4, 8], hidden=[16], activation="gelu",
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
        hidden: Widths,
        activation: Activation,
    ):
        first, height, wide = picture_shape(shape, "conv")
        sizes = halvings((height, wide), len(channels), "conv")
        super().__init__(
            shape=shape, outputs=outputs, channels=channels[-1], grid=sizes[-1], latent_shape=latent_shape,
            width=hidden[-1] if hidden else None,
        )  # fmt: skip
        self.picture = picture_shape(shown, "conv")
        if self.on_grid and hidden:
            raise UserError(f"model.hidden={list(hidden)}: has no effect on a latent that is a grid; [] is allowed")
        flat = self.on_features[0] * sizes[-1][0] * sizes[-1][1]
        self.first = nn.Conv2d(self.picture[0], width(channels[0], activation), 4, stride=2, padding=1)
        self.condition = Condition(condition_dim, width(channels[0], activation))
        self.down = nn.Sequential(ACTIVATIONS[activation](), *_down(channels, activation))
        self.dense = dense([flat, *hidden], activation)
        if not self.on_grid:
            self.undense = dense([self.latent_size + condition_dim, *reversed(hidden), flat], activation)
        else:
            self.expand_grid(condition_dim)
        self.up = _up([*reversed(channels), first * outputs], sizes[::-1], activation)

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map x [B, *shown] and c [B, C] to features [B, F], or [B, F, h, w] on a grid."""
        h = self.down(self.condition(self.first(x.view(-1, *self.picture)), c))
        return h if self.on_grid else self.dense(h.flatten(1))

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        h = self.from_grid(z, c) if self.on_grid else self.undense(join(z, c)).view(-1, *self.on_features)
        return self.up(h).view(-1, self.outputs, *self.shape)


def _down(channels: Sequence[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(channels):
        layers += [
            nn.Conv2d(n_in, width(n_out, activation), 4, stride=2, padding=1),
            ACTIVATIONS[activation](),
        ]
    return layers


def _up(channels: Sequence[int], sizes: Sequence[tuple[int, int]], activation: str) -> nn.Sequential:
    """Return transposed convolutions whose outputs have exactly the given sizes; the last one has no activation."""
    layers: list[nn.Module] = []
    for (n_in, n_out), (small, large) in zip(pairwise(channels), pairwise(sizes), strict=True):
        last = len(layers) // 2 == len(channels) - 2
        extra = (large[0] - 2 * small[0], large[1] - 2 * small[1])
        n_out = n_out if last else width(n_out, activation)
        kind = ConvTransposeReadout if last else ConvTranspose
        layers.append(kind(n_in, n_out, 4, stride=2, padding=1, output_padding=extra))
        layers += [] if last else [ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)
