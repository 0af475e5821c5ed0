"""Strided convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

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


class Conv(nn.Module):
    """4×4 convolutions of stride 2, then dense layers; the decoder mirrors them with transposed convolutions.

    Any height, width and number of channels: the output has exactly the shape of the input.

    Args:
        shape: [H, W] or [C, H, W] of one example.
        latent_dim: D, dimensions of z.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
        channels: of the encoder's stages.
        hidden: widths of the dense layers between the last stage and z; may be empty.
        activation: a key of `layers.ACTIVATIONS`.

    Raises:
        UserError: the data are no pictures, or too small for so many stages.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        latent_dim: int,
        condition_dim: int,
        outputs: int,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (),
        activation: str = "gelu",
    ):
        super().__init__()
        first, height, wide = self.picture = picture_shape(shape, "conv")
        self.shape, self.outputs = tuple(shape), outputs
        sizes = halvings((height, wide), len(channels), "conv")
        self.inner = (channels[-1], *sizes[-1])
        flat = channels[-1] * sizes[-1][0] * sizes[-1][1]
        self.features = hidden[-1] if hidden else flat
        self.first = nn.Conv2d(first, width(channels[0], activation), 4, stride=2, padding=1)
        self.condition = Condition(condition_dim, width(channels[0], activation))
        self.down = nn.Sequential(ACTIVATIONS[activation](), *_down(channels, activation), nn.Flatten())
        self.dense = dense([flat, *hidden], activation)
        self.undense = dense([latent_dim + condition_dim, *reversed(hidden), flat], activation)
        self.up = _up([*reversed(channels), first * outputs], sizes[::-1], activation)

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map x [B, *shape] and c [B, C] to features [B, F]."""
        return self.dense(self.down(self.condition(self.first(x.view(-1, *self.picture)), c)))

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        h = self.up(self.undense(join(z, c)).view(-1, *self.inner))
        return h.view(-1, self.outputs, *self.shape)


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
