"""One affine map each way."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from vae_cli.model.base import Model
from vae_cli.model.layers import Readout, join


class Linear(Model):
    """The features are the data themselves, so that the posterior's head is the only map; the decoder is affine.

    With a Gaussian likelihood of one shared σ this is probabilistic PCA (Lucas et al. 2019).

    Args:
        shape: of one example.
        shown: shape of what the encoder is shown of it.
        latent_shape: of one code; its elements are flattened to D.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.

    >>> import torch
    >>> model = Linear(
    ...     shape=(4, 4), shown=(4, 4), latent_shape=(3,), condition_dim=0, outputs=2
    ... )
    >>> h = model.encode(torch.zeros(5, 4, 4), None)
    >>> h.shape, model.decode(torch.zeros(5, 3), None).shape
    (torch.Size([5, 16]), torch.Size([5, 2, 4, 4]))
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        shown: Sequence[int],
        latent_shape: Sequence[int],
        condition_dim: int,
        outputs: int,
    ):
        features = prod(shown) + condition_dim
        super().__init__(shape=shape, outputs=outputs, features=features, latent_shape=latent_shape)
        self.readout = Readout(self.latent_size + condition_dim, outputs * prod(shape))

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Return x [B, *shown] and c [B, C] as features [B, F]."""
        return join(x.flatten(1), c)

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        return self.readout(join(z, c)).view(-1, self.outputs, *self.shape)
