"""A decoder that sees x: each pixel given those before it, and z."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.config.types import Count
from vae_cli.distribution import Explained
from vae_cli.likelihood.base import Likelihood
from vae_cli.likelihood.support import Levels
from vae_cli.system.errors import UserError


class Autoregressive(Likelihood):
    """p(x|z) = Π_i p(x_i | x_<i, z), pixels from the top left, by masked convolutions (van den Oord et al. 2016).

    The decoder's outputs, `context` planes, are added to each layer. So strong a decoder can do without z: watch for
    posterior collapse (Chen et al. 2017).

    Args:
        shape: [H, W] or [1, H, W] of one picture.
        levels: L of the pictures, 2 for binary ones.
        hidden: channels of each layer.
        layers: masked convolutions after the first.
        context: planes of decoder outputs that are seen.

    Raises:
        UserError: the data are no pictures of one channel.

    >>> likelihood = Autoregressive(shape=(2, 2), levels=2, hidden=4, layers=1, context=2)
    >>> p = likelihood(torch.zeros(3, 2, 2, 2), 2)
    >>> p.log_prob(torch.ones(3, 2, 2)).shape
    torch.Size([3])
    """

    support = Levels(binarize=True)
    display = "draw"
    gives = ("mass", "sees x")

    def __init__(self, *, shape: Sequence[int], levels: int, hidden: Count, layers: Count, context: Count):
        super().__init__()
        if len(shape) not in (2, 3) or (len(shape) == 3 and shape[0] != 1):
            raise UserError(
                f"likelihood=autoregressive: data of shape {list(shape)}; pictures of one channel, [H, W] or "
                "[1, H, W], are allowed"
            )
        self.outputs, self.levels, self.frame = context, levels, tuple(shape[-2:])
        self.first = MaskedConv(1, 2 * hidden, 7, own=False)
        self.body = nn.ModuleList(MaskedConv(hidden, 2 * hidden, 3, own=True) for _ in range(layers))
        self.context = nn.ModuleList(nn.Conv2d(context, 2 * hidden, 1) for _ in range(layers + 1))
        self.readout = nn.Conv2d(hidden, 1 if levels == 2 else levels, 1)

    def forward(self, outputs: Tensor, event_dims: int, c: Tensor | None = None) -> Distribution:
        """Map outputs [*batch, context, *shape] to p(x|z,c)."""
        return PixelByPixel(self, outputs, event_dims)

    def logits(self, x: Tensor, context: list[Tensor]) -> Tensor:
        """Return logits [N, 1 or L, H, W] of each pixel of x [N, 1, H, W], seen from the pixels before it."""
        h = F.glu(self.first(x) + context[0], 1)
        for layer, seen in zip(self.body, context[1:], strict=True):
            h = h + F.glu(layer(h) + seen, 1)
        return self.readout(h)

    def seen(self, outputs: Tensor) -> list[Tensor]:
        """Return what each layer sees of the decoder's outputs [N, context, H, W]."""
        return [layer(outputs) for layer in self.context]


class MaskedConv(nn.Conv2d):
    """A convolution that sees the pixels above and to the left, and the pixel itself where `own` says so."""

    mask: Tensor

    def __init__(self, n_in: int, n_out: int, size: int, *, own: bool):
        super().__init__(n_in, n_out, size, padding=size // 2)
        mask = torch.ones(size, size)
        mask[size // 2, size // 2 + own :] = 0.0
        mask[size // 2 + 1 :] = 0.0
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [N, C, H, W] to [N, outputs, H, W]."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


class PixelByPixel(Explained):
    """p(x|z) of an `Autoregressive` likelihood; densities take one pass, draws one for each pixel.

    Its mean has no closed form, and none is offered.
    """

    def __init__(self, net: Autoregressive, outputs: Tensor, event_dims: int):
        split = outputs.ndim - event_dims - 1
        super().__init__(outputs.shape[:split], outputs.shape[split + 1 :], validate_args=False)
        self.net, self.outputs = net, outputs

    def expand(self, batch_shape: Any, _instance: Any = None) -> PixelByPixel:
        """Return the same distribution with a larger batch."""
        shape = torch.Size(batch_shape) + self.outputs.shape[len(self.batch_shape) :]
        return PixelByPixel(self.net, self.outputs.expand(shape), len(self.event_shape))

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x_i | x_<i, z) of each pixel [*batch, *event], nats."""
        shape = torch.broadcast_shapes(x.shape, self.batch_shape + self.event_shape)
        p = self.expand(shape[: len(shape) - len(self.event_shape)])
        flat = x.expand(shape).reshape(-1, 1, *self.net.frame)
        logits = self.net.logits(flat, self.net.seen(p._flat()))
        if self.net.levels == 2:
            found = flat * logits - F.softplus(logits)
        else:
            level = (flat * (self.net.levels - 1)).round().long()
            found = logits.log_softmax(1).gather(1, level)
        return found.view(shape)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) [*batch], nats."""
        terms = self.element_log_prob(x)
        return terms.flatten(terms.ndim - len(self.event_shape)).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw x [*sample_shape, *batch, *event], a pixel after the other."""
        p = self.expand(torch.Size(sample_shape) + self.batch_shape)
        context = self.net.seen(p._flat())
        x = context[0].new_zeros(len(context[0]), 1, *self.net.frame)
        for row in range(self.net.frame[0]):
            for column in range(self.net.frame[1]):
                x[:, 0, row, column] = self._drawn(self.net.logits(x, context)[:, :, row, column])
        return x.view(*p.batch_shape, *p.event_shape)

    def _drawn(self, logits: Tensor) -> Tensor:
        if self.net.levels == 2:
            return torch.bernoulli(logits[:, 0].sigmoid())
        return torch.multinomial(logits.softmax(1), 1)[:, 0] / (self.net.levels - 1)

    def _flat(self) -> Tensor:
        split = len(self.batch_shape)
        return self.outputs.reshape(-1, self.outputs.shape[split], *self.net.frame)
