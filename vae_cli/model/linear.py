"""One affine map each way."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from vae_cli.model.layers import Readout, join


class Linear(nn.Module):
    """The features are the data themselves, so that the posterior's head is the only map; the decoder is affine.

    With a Gaussian likelihood of one shared σ this is probabilistic PCA (Lucas et al. 2019).

    Args:
        shape: of one example.
        latent_dim: D, dimensions of z.
        condition_dim: C, dimensions of the condition; 0 for none.
        outputs: P, decoder outputs for each element of x.
    """

    def __init__(self, *, shape: Sequence[int], latent_dim: int, condition_dim: int, outputs: int):
        super().__init__()
        self.shape, self.outputs = tuple(shape), outputs
        self.features = prod(shape) + condition_dim
        self.readout = Readout(latent_dim + condition_dim, outputs * prod(shape))

    def encode(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Return x [B, *shape] and c [B, C] as features [B, F]."""
        return join(x.flatten(1), c)

    def decode(self, z: Tensor, c: Tensor | None) -> Tensor:
        """Map z [B, D] and c [B, C] to outputs [B, P, *shape]."""
        return self.readout(join(z, c)).view(-1, self.outputs, *self.shape)
