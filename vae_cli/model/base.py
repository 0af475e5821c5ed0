"""The contract of a model: geometry. It knows the shapes of x and of z, and builds what maps to each.

A model maps what an encoder is shown of x to features h, and a code z to decoder outputs, P for each element of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from vae_cli.config.types import Count
from vae_cli.model.layers import Readout


def settings(*, latent_dim: Count) -> None:
    """Every model also has this setting: D, the dimensions of z (of its top layer, if there are several).

    Its signature alone is read, by the check of the configuration.
    """


class Model(nn.Module):
    """Base of the models.

    Args:
        shape: of one example x.
        outputs: P, decoder outputs for each element of x.
        features: F, width of the features h [B, F].
        latent_shape: of one code z.

    >>> import torch
    >>> class Mean(Model):
    ...     def encode(self, x, c):
    ...         return x.mean(1, keepdim=True)
    ...
    ...     def decode(self, z, c):
    ...         return z.unsqueeze(-1).expand(-1, self.outputs, *self.shape)
    >>> model = Mean(shape=(6,), outputs=2, features=1, latent_shape=(1,))
    >>> model.decode(model.encode(torch.ones(5, 6), None), None).shape
    torch.Size([5, 2, 6])
    >>> model.head(1, 2)(torch.ones(5, 1)).shape  # two parameters for each of one dimension
    torch.Size([5, 2])
    """

    def __init__(self, *, shape: Sequence[int], outputs: int, features: int, latent_shape: Sequence[int]):
        super().__init__()
        self.shape, self.outputs = tuple(shape), outputs
        self.features, self.latent_shape = features, tuple(latent_shape)

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map what an encoder is shown [B, *shown] and c [B, C] to features h: [B, F], or [B, F, h, w] on a grid."""
        raise NotImplementedError("a model maps x to features in `encode`")

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]; a model on a grid unflattens z itself."""
        raise NotImplementedError("a model maps z to decoder outputs in `decode`")

    def head(self, size: int, outputs: int, extra: int = 0) -> nn.Module:
        """Return what maps h to parameters of q(z|x): [B, outputs · D + extra].

        Args:
            size: dimensions of z; on a grid, its channels.
            outputs: parameters for each element of z.
            extra: further parameters of the whole.
        """
        return Readout(self.features, outputs * size + extra)

    @property
    def latent_size(self) -> int:
        """The number of elements of a code that `decode` takes."""
        return prod(self.latent_shape)
