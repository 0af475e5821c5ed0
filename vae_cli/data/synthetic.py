"""Seeded smooth blobs, for tests and benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_cli.config.types import Count, CountOrNone, DataShape
from vae_cli.data.examples import Examples, Splits, numbered


def synthetic(*, n: Count, shape: DataShape, classes: CountOrNone) -> Splits:
    """Return seeded smooth bumps: [N, *shape] uint8 levels 0 … 255.

    Each class has its own place on the grid; each example shifts it a little and chooses a width and a height.
    """
    generator = torch.Generator().manual_seed(0)
    grid = [side for side in shape[-2:]]
    y = torch.randint(max(classes, 1), (n,), generator=generator)
    centres = torch.rand(max(classes, 1), len(grid), generator=generator) * 0.6 + 0.2
    x = torch.empty(n, *shape, dtype=torch.uint8)
    for part in torch.arange(n).split(8192):
        x[part] = _bumps(centres[y[part]], shape, generator)
    return Splits(Examples(x, y if classes else None), levels=256, names=numbered(classes) or None)


def _bumps(centres: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """Return bumps exp(−‖p − c‖² / 2w²) around centres [B, dims], as uint8 [B, *shape]."""
    n, dims = centres.shape
    centres = centres + 0.08 * torch.randn(n, dims, generator=generator)
    width = 0.08 + 0.12 * torch.rand(n, generator=generator)
    total = torch.zeros(n, *shape[-2:])
    for axis, side in enumerate(shape[-2:]):
        at = torch.linspace(0.0, 1.0, side) - centres[:, axis, None]
        total += (at**2).view(n, *[side if a == axis else 1 for a in range(dims)])
    height = 0.6 + 0.4 * torch.rand(n, shape[0] if len(shape) == 3 else 1, generator=generator)
    bump = torch.exp(-total / (2.0 * width.view(n, *[1] * dims) ** 2))
    spread = bump.view(n, *[1] * (len(shape) - dims), *bump.shape[1:])
    return (spread * height.view(n, -1, *[1] * (len(shape) - 1))).view(n, *shape).mul(255.0).round().to(torch.uint8)
