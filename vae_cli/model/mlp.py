"""Fully connected encoder and decoder."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from vae_cli.model.layers import Readout, dense, join


class MLP(nn.Module):
    """Dense layers each way; data of any shape are flattened.

    Args:
        shape: of one example.
        latent_dim: D, dimensions of z.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
        activation: a key of `layers.ACTIVATIONS`.
        bias_from_data: whether the readout's bias starts so that outputs have the mean of the training examples.
    """

    def __init__(
        self,
        *,
        shape: Sequence[int],
        latent_dim: int,
        condition_dim: int,
        outputs: int,
        hidden: Sequence[int] = (400,),
        activation: str = "relu",
        bias_from_data: bool = False,
    ):
        super().__init__()
        self.shape, self.outputs, self.bias_from_data = tuple(shape), outputs, bias_from_data
        self.features = hidden[-1]
        self.encoder = dense([prod(shape) + condition_dim, *hidden], activation)
        self.decoder = dense([latent_dim + condition_dim, *reversed(hidden)], activation)
        self.readout = Readout(hidden[0], outputs * prod(shape))

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Map x [B, *shape] and c [B, C] to features [B, F]."""
        return self.encoder(join(x.flatten(1), c))

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        return self.readout(self.decoder(join(z, c))).view(-1, self.outputs, *self.shape)
