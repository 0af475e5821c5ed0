"""Fully connected encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor

from vae_cli.config.types import Activation, SomeWidths
from vae_cli.model.base import Model
from vae_cli.model.layers import Readout, dense, join


class MLP(Model):
    """Dense layers each way; data of any shape are flattened.

    Args:
        shape: of one example.
        shown: shape of what the encoder is shown of it.
        latent_shape: of one code; its elements are flattened to D.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        activation: a key of `layers.ACTIVATIONS`.
        bias_from_data: whether the readout's bias starts so that outputs have the mean of the training examples.

    >>> import torch
    >>> model = MLP(
    ...     shape=(4, 4), shown=(4, 4), latent_shape=(3,), condition_dim=0, outputs=2,
    ...     hidden=[32, 16], activation="relu", bias_from_data=False,
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
        hidden: SomeWidths,
        activation: Activation,
        bias_from_data: bool,
    ):
        super().__init__(shape=shape, outputs=outputs, features=hidden[-1], latent_shape=latent_shape)
        self.bias_from_data = bias_from_data
        self.encoder = dense([prod(shown) + condition_dim, *hidden], activation)
        self.decoder = dense([self.latent_size + condition_dim, *reversed(hidden)], activation)
        self.readout = Readout(hidden[0], outputs * prod(shape))

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map x [B, *shown] and c [B, C] to features [B, F]."""
        return self.encoder(join(x.flatten(1), c))

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        return self.readout(self.decoder(join(z, c))).view(-1, self.outputs, *self.shape)
