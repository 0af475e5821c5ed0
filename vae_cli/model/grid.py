"""What convolutional models share: features on a grid, and codes that are flat or on the same grid."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from vae_cli.model.base import Model
from vae_cli.model.layers import Condition, ConvReadout


class GridModel(Model):
    """A model whose features are pictures [F, h, w].

    Args:
        shape: of one example.
        outputs: P, decoder outputs for each element of x.
        channels: F of the last stage.
        grid: (h, w) of the last stage.
        latent_shape: of one code: (D,), or (C, None, None) for C channels on the grid.
        width: of the features where they are no grid; None for all of the last stage's.

    >>> model = GridModel(shape=(28, 28), outputs=1, channels=8, grid=(7, 7), latent_shape=(4, None, None))
    >>> model.latent_shape, model.latent_size
    ((4, 7, 7), 196)
    """

    gives = ("grid",)

    def __init__(
        self,
        *,
        shape: Sequence[int],
        outputs: int,
        channels: int,
        grid: tuple[int, int],
        latent_shape: Sequence[int | None],
        width: int | None = None,
    ):
        self.on_features, self.on_grid = (channels, *grid), len(latent_shape) == 3
        resolved = (latent_shape[0], *grid) if self.on_grid else latent_shape
        features = channels if self.on_grid else width or prod(self.on_features)
        super().__init__(shape=shape, outputs=outputs, features=features, latent_shape=resolved)  # type: ignore[arg-type]

    def expand_grid(self, condition_dim: int) -> None:
        """Build what maps a code on the grid to the decoder's first features: a 1×1 convolution."""
        self.expand = nn.Conv2d(self.latent_shape[0], self.on_features[0], 1)
        self.expand_condition = Condition(condition_dim, self.on_features[0])

    def from_grid(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map a flat code z [B, C·h·w] and c to the decoder's first features [B, F, h, w]."""
        return self.expand_condition(self.expand(z.view(-1, *self.latent_shape)), c)

    def head(self, size: int, outputs: int, extra: int = 0) -> nn.Module:
        """Return what maps h to parameters of q(z|x); on a grid a 1×1 convolution: [B, outputs · C·h·w]."""
        if not self.on_grid:
            return super().head(size, outputs, extra)
        if extra:
            raise ValueError("a posterior with parameters of the whole needs a flat latent")
        return nn.Sequential(ConvReadout(self.features, outputs * size, 1), nn.Flatten())
