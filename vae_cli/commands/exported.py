"""Encoder and decoder as plain modules of tensors, in the data's own units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vae_cli.api import Trained
from vae_cli.batch import Batch


class Encoder(nn.Module):
    """x (and y) → mean and scale of q(z|x), each [B, *code]; NaN is a missing value where the run knows such."""

    def __init__(self, model: Trained):
        super().__init__()
        self.vae, self.spec, self.code = model.vae, model.spec, model.code_shape

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Encode x [B, *shape]."""
        given, *labels = inputs
        x, known, y = self.spec.standardize(given), None, labels[0] if labels else None
        if self.spec.missing:
            known = ~given.isnan()
            x = torch.where(known, x, 0.0)
        q = self.vae.encode(Batch(x, y, known))
        return q.mean.view(-1, *self.code), q.stddev.view(-1, *self.code)


class Decoder(nn.Module):
    """z (and y) → mean of p(x|z) [B, *shape]."""

    def __init__(self, model: Trained):
        super().__init__()
        self.vae, self.rescaled = model.vae, model.rescaled

    def forward(self, *inputs: Tensor) -> Tensor:
        """Decode z [B, *code]."""
        z, *labels = inputs
        return self.rescaled(self.vae.decode(z.flatten(1), *labels)).mean
