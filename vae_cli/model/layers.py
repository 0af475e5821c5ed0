"""Building blocks that the models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from vae_cli.system.errors import UserError

FEW = 4  # output channels up to which a transposed convolution on the CPU avoids oneDNN
THREADS = 4  # most threads with which that is faster
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "gated": lambda: nn.GLU(dim=1),
}


def width(n: int, activation: str) -> int:
    """Return the outputs a layer needs so that n remain after its activation: twice as many for a gate."""
    return 2 * n if activation == "gated" else n


def dense(widths: Sequence[int], activation: str) -> nn.Sequential:
    """Return linear layers from widths[0] to widths[-1], each with its activation."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, width(n_out, activation)), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def join(x: Tensor, c: Tensor | None) -> Tensor:
    """Return [x, c] along the last axis, or x where there is no condition."""
    return x if c is None else torch.cat([x, c], dim=-1)


def picture_shape(shape: Sequence[int], model: str) -> tuple[int, int, int]:
    """Return (C, H, W) of data [H, W] or [C, H, W].

    Raises:
        UserError: the data are no pictures.
    """
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    raise UserError(f"model={model}: data of shape {list(shape)}; [H, W] or [C, H, W] is allowed (model=mlp takes any)")


def halvings(size: tuple[int, int], stages: int, model: str) -> list[tuple[int, int]]:
    """Return the sizes (H, W) before and after each halving (rounded down).

    Raises:
        UserError: a side would vanish.
    """
    sizes = [size]
    for _ in range(stages):
        sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
    if min(sizes[-1]) < 1:
        most = min(size).bit_length() - 1
        raise UserError(
            f"model.channels: {stages} stages would halve {size[0]}×{size[1]} pixels to nothing; "
            f"at most {most} for this size (model={model})"
        )
    return sizes


class Unrounded(nn.Module):
    """A mixin for layers whose products stay in fp32 when the others run in lower precision.

    The last layer must be exact: a mean in bfloat16 would be off by half a grey level.
    """

    def forward(self, *given: Any) -> Any:
        """Map x as the layer does."""
        kind = given[0].device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(*given)
        with torch.autocast(kind, enabled=False):
            return super().forward(given[0].float(), *given[1:])


class Readout(Unrounded, nn.Linear):
    """A linear layer in fp32."""


class ConvReadout(Unrounded, nn.Conv2d):
    """A convolution in fp32."""


class ConvTranspose(nn.ConvTranspose2d):
    """A transposed convolution. On the CPU, with few output channels, it takes torch's other kernel, which is faster.

    oneDNN computes these a vector of outputs at a time, most of which are then thrown away: 32 → 1 channels to 28×28
    pixels takes three times as long, 32 → 3 twice as long, 32 → 8 as long. With many threads oneDNN is faster.
    """

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Map x [B, C, H, W] to [B, outputs, about twice H, about twice W]."""
        if output_size is not None or not self._takes_other(x):
            return super().forward(x, output_size)
        shape, extra = (self.kernel_size, self.bias, self.stride, self.padding), self.output_padding
        y: Tensor = torch.ops.aten.slow_conv_transpose2d(x, self.weight, *shape, extra, self.dilation)
        return y

    def _takes_other(self, x: Tensor) -> bool:
        """Whether the other kernel is faster for this input and supports it: it has no vmap, export or autocast."""
        faster = x.device.type == "cpu" and self.out_channels <= FEW and torch.get_num_threads() <= THREADS
        known = x.ndim == 4 and x.shape[0] > 0 and self.groups == 1 and not torch.is_autocast_enabled("cpu")
        outside = torch.compiler.is_exporting() or torch._C._are_functorch_transforms_active()
        return faster and known and not outside


class ConvTransposeReadout(Unrounded, ConvTranspose):
    """A transposed convolution in fp32."""


class Condition(nn.Module):
    """Adds a learned map of the condition to each channel: the same as constant label planes, but cheap.

    A convolution over planes that are constant across the picture is a bias for each channel.
    """

    def __init__(self, condition_dim: int, channels: int):
        super().__init__()
        self.map = nn.Linear(condition_dim, channels, bias=False) if condition_dim else None

    def forward(self, h: Tensor, c: Tensor | None) -> Tensor:
        """Return h [B, C, H, W] with the condition c [B, K] added to its channels."""
        return h if self.map is None or c is None else h + self.map(c)[:, :, None, None]


def autocast(model: Any, like: Tensor) -> AbstractContextManager[Any]:
    """Compute products in the model's own type (`products`) within the block."""
    if getattr(model, "products", torch.float32) == torch.float32:
        return nullcontext()
    return torch.autocast(like.device.type, dtype=torch.bfloat16)
