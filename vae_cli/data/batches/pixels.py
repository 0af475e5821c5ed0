"""From what a source stores to what a model sees: scaling, binarisation, dequantisation. Runs on the device.

A transform takes stored values, uint8 grey levels k in 0 … L−1 or floats, and returns float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from vae_cli.system import randomness

Transform = Callable[[Tensor], Tensor]


def scale(x: Tensor, *, levels: int | None) -> Tensor:
    """Return k / (L − 1), in [0, 1]; floats stay as they are."""
    if levels is None:
        return x.float()
    return x.float() if levels == 2 else x.float().mul_(1.0 / (levels - 1))


def _uniform(like: Tensor) -> Tensor:
    """Draw float32 from [0, 1), an element for each of those of a batch."""
    return randomness.rows(partial(torch.rand, device=like.device), like.shape)


def _integers(shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw 16-bit integers, four to a draw."""
    n = math.prod(shape)
    draws = torch.empty((n + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    return draws.view(torch.int16)[:n].view(*shape)


def bernoulli(x: Tensor, *, levels: int | None) -> Tensor:
    """Draw each pixel from Bernoulli(k / (L − 1)).

    Grey levels are compared with random 16-bit integers, four to a draw, which is several times faster than
    `torch.bernoulli`; probabilities are exact to 2⁻¹⁶, and those of 0 and 1 exactly.
    """
    if levels is None:
        return _uniform(x).lt_(x)
    if x.device.type == "mps":  # cannot draw from the whole range of an integer
        return _uniform(x).mul_(levels - 1).lt(x).float()
    uniform = randomness.rows(partial(_integers, device=x.device), x.shape).clamp_(max=32766)  # white is always white
    if levels == 256:
        bound = x.to(torch.int16).mul_(257).sub_(32768)
    else:
        bound = x.float().mul_(65535.0 / (levels - 1)).sub_(32768.0).round_().to(torch.int16)
    return torch.lt(uniform, bound, out=torch.empty(x.shape, device=x.device))  # several times a bool made float


def dequantize(x: Tensor, *, levels: int) -> Tensor:
    """Return (k + u) / L with u uniform on [0, 1): a density in place of a mass (Theis et al. 2016)."""
    return _uniform(x).add_(x).mul_(1.0 / levels)


def threshold(x: Tensor, *, levels: int | None) -> Tensor:
    """Return 1 where the value is above one half, else 0."""
    return (scale(x, levels=levels) > 0.5).float()


TRANSFORMS: dict[str, Callable[..., Tensor]] = {
    "scale": scale,
    "bernoulli": bernoulli,
    "dequantize": dequantize,
    "threshold": threshold,
}


def transform(kind: str, levels: int | None) -> Transform:
    """Return the transform of that name: scale, bernoulli, dequantize or threshold."""
    return partial(TRANSFORMS[kind], levels=levels)
