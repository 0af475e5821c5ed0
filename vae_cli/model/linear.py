"""An affine decoder."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from vae_cli.config.types import Widths
from vae_cli.model.base import Model
from vae_cli.model.layers import Readout, dense, join


class Linear(Model):
    """The decoder is affine. So is the encoder without hidden layers: the posterior's head is then its only map.

    With a Gaussian likelihood of one shared σ this is probabilistic PCA (Lucas et al. 2019), with a σ of each element
    factor analysis. The exact posterior is affine in x; where values are missing, it differs from pattern to pattern of
    what is observed, and hidden layers come close to it.

    Args:
        shape: of one example.
        shown: shape of what the encoder is shown of it.
        latent_shape: of one code; its elements are flattened to D.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
        hidden: widths of the encoder's hidden layers (ReLU); none for an affine encoder.

    >>> import torch
    >>> model = Linear(shape=(5,), shown=(2, 5), latent_shape=(2,), condition_dim=0, outputs=1, hidden=[16])
    >>> model.encode(torch.zeros(3, 2, 5), None).shape
    torch.Size([3, 16])
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        shown: Sequence[int],
        latent_shape: Sequence[int],
        condition_dim: int,
        outputs: int,
        hidden: Widths,
    ):
        widths = [prod(shown) + condition_dim, *hidden]
        super().__init__(shape=shape, outputs=outputs, features=widths[-1], latent_shape=latent_shape)
        self.encoder = dense(widths, "relu")
        self.readout = Readout(self.latent_size + condition_dim, outputs * prod(shape))

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map x [B, *shown] and c [B, C] to features [B, F]: themselves, where there are no hidden layers."""
        return self.encoder(join(x.flatten(1), c))

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        return self.readout(join(z, c)).view(-1, self.outputs, *self.shape)
