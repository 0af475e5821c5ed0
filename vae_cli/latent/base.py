"""The contract of a latent: features in, a draw of z with its KL out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.distribution import kl_by_dimension
from vae_cli.model.layers import autocast


@dataclass(frozen=True)
class Layout:
    """The shape of each stochastic layer of a code, top first; a flat code holds them one after another.

    >>> Layout(((4, 7, 7),)).size
    196
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """The number of elements of each layer."""
        return [prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """D, the number of elements of a code."""
        return sum(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a code: that of its layer, or (D,) where there are several."""
        return self.shapes[0] if len(self.shapes) == 1 else (self.size,)

    def flatten(self, layers: Sequence[Tensor]) -> Tensor:
        """Return one flat code [..., D] of its layers, each [..., *shape]."""
        flat = [z.flatten(z.ndim - len(shape)) for z, shape in zip(layers, self.shapes, strict=True)]
        return torch.cat(flat, -1) if len(flat) > 1 else flat[0]

    def unflatten(self, z: Tensor) -> list[Tensor]:
        """Return the layers, each [..., *shape], of a flat code z [..., D]."""
        parts = z.split(self.sizes, -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]


@dataclass
class Draw:
    """K draws of z for each of B examples, and what they cost."""

    z: Tensor  # [K, B, D]
    q: Distribution  # q(z|x,c), batch [B], event [D]
    p: Distribution  # p(z|c), batch [] or [B], event [D]
    kl: Tensor  # [B, columns] KL(q ‖ p), nats: a column for each dimension, or fewer where they are not independent
    layers: tuple[tuple[int, int], ...]  # of each stochastic layer, top first: its columns of `kl`, its dimensions
    parameters: Tensor  # [B, P] of q
    extra: dict[str, Tensor] = field(default_factory=dict)  # [] each: what the latent adds to the loss, by name


class Latent(nn.Module):
    """Base of the latents; as it stands, one layer of any shape.

    Attributes:
        layout: the shape of z.
        posterior: parameters → q(z|x,c); its `head` maps features to them.
        prior: condition → p(z|c).

    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> latent = build(compose("model.latent_dim=3"), Spec((4,), 2, 0.0, 1.0)).latent
    >>> latent.layout.size, latent.generate(5, None).shape
    (3, torch.Size([5, 3]))
    """

    gives: tuple[str, ...] = ("one layer",)
    extra: tuple[str, ...] = ()  # names of what `Draw.extra` holds
    moved = "dimension moved over ±{:g} standard deviations of its codes"  # what a traversal shows

    def __init__(self, layout: Layout):
        super().__init__()
        self.layout = layout
        self.posterior: Any
        self.prior: Any

    def parameters_of(self, h: Tensor) -> Tensor:
        """Return the parameters [B, P] of q(z|x,c) for features h."""
        return self.posterior.head(h)

    def q(self, parameters: Tensor) -> Distribution:
        """Return q(z|x,c), batch [B], event [D], of parameters [B, P]."""
        return self.posterior.distribution(parameters)

    def p(self, c: Tensor | None) -> Distribution:
        """Return p(z|c), batch [] or [B], event [D]."""
        return self.prior(c)

    def top(self, h: Tensor) -> Distribution:
        """Return q(z|x,c) of the top layer for features h."""
        return self.q(self.parameters_of(h))

    def kl_by_layer(self, q: Any, p: Any, z: Tensor) -> list[Tensor]:
        """Return KL(q ‖ p), nats, of each stochastic layer, top first, each [B, its columns]; z [K, B, D]."""
        return [kl_by_dimension(q, p, z)]

    def infer(self, parameters: Tensor, c: Tensor | None, samples: int) -> Draw:
        """Draw z [K, B, D], K = `samples`, from q of parameters [B, P]; c [B, C] is the prior's condition."""
        q, p = self.q(parameters), self.p(c)
        return self.weigh(q.rsample((samples,)), q, p, parameters)

    def weigh(self, z: Tensor, q: Distribution, p: Distribution, parameters: Tensor) -> Draw:
        """Return draws z [K, B, D] of q with what they cost under p."""
        kls = self.kl_by_layer(q, p, z)
        layers = tuple((kl.shape[-1], size) for kl, size in zip(kls, self.units, strict=True))
        return Draw(z, q, p, torch.cat(kls, -1) if len(kls) > 1 else kls[0], layers, parameters)

    def generate(self, n: int, c: Tensor | None) -> Tensor:
        """Draw n codes [n, D] from the prior; c holds n conditions, or is None."""
        p = self.p(c)
        return p.sample((n,) if not p.batch_shape else ())

    @property
    def units(self) -> list[int]:
        """The number of latent units of each layer, top first: elements, where they are numbers."""
        return self.layout.sizes

    def by_unit(self, values: Tensor) -> Tensor:
        """Return one value for each unit of what each element of a code has, [..., D] → [..., units]."""
        return values

    @property
    def described(self) -> str:
        """What a code is, in words."""
        shape = f" ({' × '.join(map(str, self.layout.shape))})" if len(self.layout.shape) > 1 else ""
        return f"{self.layout.size} latent dimension{'s' * (self.layout.size > 1)}{shape}"

    def code_of(self, q: Distribution) -> Tensor:
        """Return the code [*batch, D] that stands for an example: the mean of its posterior q."""
        return q.mean

    def walk(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Return the codes [S, D] on the way from a [D] to b [D] at positions t [S] from 0 to 1: a line."""
        return a + t.unsqueeze(1) * (b - a)

    def traverse(self, starts: Tensor, means: Tensor, units: Tensor, offsets: Tensor) -> Tensor:
        """Return codes [U, S, D]: in each row one of U latent units moves, the others stay.

        Args:
            starts: codes that the rows start from, [U, D], or [D] for all.
            means: of the posteriors of many examples [N, D].
            units: which units move, [U].
            offsets: how far [S], in standard deviations of the means.
        """
        codes = starts.expand(len(units), -1).unsqueeze(1).repeat(1, len(offsets), 1)
        for row, j in zip(codes, units.tolist(), strict=True):
            row[:, j] = means[:, j].mean() + offsets * means[:, j].std(correction=0).clamp(min=0.1)
        return codes

    def decoded(self, z: Tensor) -> Tensor:
        """Return what the model decodes of codes [..., D]: all of them, or the layer next to the data."""
        return z


class Encoder:
    """x, c → the parameters of q(z|x,c), and q of the top layer: what the VAE and a prior of pseudo-inputs share.

    Not a module, so that weights are held once.

    Args:
        model: its `encode` gives features.
        shown: what the encoder is shown of x and of which elements are known.
        latent: features → the parameters of q.
        missing: whether elements of x may be missing; of a pseudo-input none ever is.
    """

    def __init__(
        self, model: Any, shown: Callable[[Tensor, Tensor | None], Tensor], latent: Latent, *, missing: bool = False
    ):
        self.model, self.shown, self.latent, self.missing = model, shown, latent, missing

    def parameters(self, x: Tensor, c: Tensor | None, known: Tensor | None = None) -> Tensor:
        """Return the parameters [B, P] of q(z|x,c) for x [B, *shape], conditions c [B, C] and known [B, *shape]."""
        with autocast(self.model, x):
            return self.latent.parameters_of(self.model.encode(self.shown(x, known), c)).to(x.dtype)

    def __call__(self, x: Tensor, c: Tensor | None) -> Distribution:
        """Return q(z|x,c) of the top layer, for x [B, *shape] of which all is known."""
        known = torch.ones_like(x, dtype=torch.bool) if self.missing else None
        with autocast(self.model, x):
            h = self.model.encode(self.shown(x, known), c).to(x.dtype)
        return self.latent.top(h)
