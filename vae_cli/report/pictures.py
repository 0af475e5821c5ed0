"""Examples become pictures: [rows, columns, *shape] → one uint8 picture [H, W, 3]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_cli.data import Resident, Spec
from vae_cli.vae import VAE

GAP = 1  # pixels between the pictures of a grid
STRIPE = 256  # elements shown at most of an example that is no picture


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether examples of that shape, [H, W] or [C, H, W] with 1 or 3 channels, can be shown as pictures."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def grid(x: Tensor, spec: Spec) -> Tensor:
    """Lay examples [rows, columns, *shape] out on a grid [H, W, 3], uint8.

    Examples that are no pictures become stripes: each row of the grid is a block of stripes, the blocks stand side by
    side. Values are scaled from the data's own range; small pictures are magnified.
    """
    rows, columns = x.shape[:2]
    low, high = spec.low, spec.high if spec.high > spec.low else spec.low + 1.0
    x = ((x.float().cpu() - low) / (high - low)).clamp(0.0, 1.0)
    if not is_picture(spec.shape):
        x = x.reshape(rows, columns, -1)
        x = x[..., :: -(-x.shape[-1] // STRIPE)]
        blocks = F.pad(x, (0, GAP), value=0.5).transpose(0, 1)
        return _bytes(_magnify(blocks.reshape(1, 1, 1, columns, -1), 8))
    x = x.reshape(rows, columns, -1, *spec.shape[-2:])
    x = _magnify(F.pad(x, (0, GAP, 0, GAP), value=0.5), max(1, 56 // max(spec.shape[-2:])))
    return _bytes(x)


def _magnify(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _bytes(x: Tensor) -> Tensor:
    """[rows, columns, C, H, W] → [rows · H, columns · W, 3]."""
    x = x.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2)
    return x.expand(-1, -1, 3).mul(255.0).round().to(torch.uint8)


@torch.no_grad()
def reconstructions(vae: VAE, data: Resident, n: int = 16) -> Tensor:
    """Return the first n examples above the means of p(x|z), z the mean of q(z|x): [2, n, *shape]."""
    x, y = data.batch(slice(0, n))
    return torch.stack([x, vae.decode(vae.encode(x, y).mean, y).mean])


@torch.no_grad()
def samples(vae: VAE, data: Resident, rows: int = 4, columns: int = 16) -> Tensor:
    """Return means of p(x|z) for draws of the prior, labels taken from the data: [rows, columns, *shape]."""
    n, y = rows * columns, data.examples.y
    if y is not None:
        y = y[torch.arange(n, device=y.device) % min(n, len(y))]
    return vae.sample(n, y).view(rows, columns, *vae.shape)


@torch.no_grad()
def class_samples(vae: VAE, data: Resident, spec: Spec, columns: int = 12, most: int = 64) -> tuple[Tensor, list[str]]:
    """Return one row of samples a class (at most `most`), or one for each of ten attribute vectors, and row names."""
    y = data.examples.y
    assert y is not None
    if spec.classes:
        kinds = torch.arange(min(spec.classes, most), device=y.device)
        names = list((spec.names or ())[: len(kinds)])
    else:
        kinds, names = y[:10], [f"example {k}" for k in range(len(y[:10]))]
    x = vae.sample(len(kinds) * columns, kinds.repeat_interleave(columns, 0))
    return x.view(len(kinds), columns, *x.shape[1:]), names
