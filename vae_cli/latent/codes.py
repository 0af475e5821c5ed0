"""Discrete codes: D latents, each one of K classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from vae_cli.config.types import TwoOrMore
from vae_cli.latent.base import Latent, Layout


class Codes(Latent):
    """z [D, K]: D one-hot vectors, each one of K classes (Jang et al. 2017; Maddison et al. 2017).

    Args:
        model: builds the posterior's head: K logits for each of D latents.
        latent_dim: D.
        posterior: (head, latent_dim, classes) → q(z|x,c).
        prior: (latent, latent_dim, classes) → p(z|c).
        classes: K.

    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose("latent=codes", "model.latent_dim=2", "latent.classes=3"), Spec((64,), 2, 0.0, 1.0))
    >>> z = vae.latent.generate(5, None)
    >>> z.shape, z.unflatten(-1, (2, 3)).sum(-1).unique().tolist()  # one class of each latent
    (torch.Size([5, 6]), [1.0])
    """

    gives = ("one layer", "discrete")
    moved = "latent through its classes"
    needs = {
        "categorical posterior": "its codes are classes",
        "categorical prior": "its codes are classes",
    }

    @staticmethod
    def decoded_shape(*, latent_dim: int, classes: int) -> tuple[int | None, ...]:
        """Return the shape of the code that the model decodes: (D, K)."""
        return (latent_dim, classes)

    def __init__(
        self,
        *,
        model: Any,
        latent_dim: int,
        posterior: Callable[..., Any],
        prior: Callable[..., Any],
        classes: TwoOrMore,
    ):
        super().__init__(Layout(((latent_dim, classes),)))
        self.posterior = posterior(
            head=partial(model.head, latent_dim * classes), latent_dim=latent_dim, classes=classes
        )
        self.prior = prior(self, latent_dim=latent_dim, classes=classes)

    @property
    def units(self) -> list[int]:
        """D: a latent is one unit, whatever its classes."""
        return [self.layout.shapes[0][0]]

    def by_unit(self, values: Tensor) -> Tensor:
        """Return the largest of what each class of a latent has: [..., D · K] → [..., D]."""
        return values.unflatten(-1, self.layout.shapes[0]).amax(-1)

    @property
    def described(self) -> str:
        """What a code is, in words."""
        latents, classes = self.layout.shape
        return f"{latents} latent{'s' * (latents > 1)} of {classes} classes"

    def code_of(self, q: Distribution) -> Tensor:
        """Return the likeliest class of each latent, one-hot: [*batch, D · K]."""
        return q.mode

    def classes_of(self, z: Tensor) -> Tensor:
        """Return the classes [..., D], as whole numbers, of one-hot codes [..., D · K]."""
        return z.unflatten(-1, self.layout.shape).argmax(-1)

    def walk(self, a: Tensor, b: Tensor, t: Tensor) -> Tensor:
        """Return the codes [S, D · K] on the way from a to b: the latents that differ change class one by one."""
        shape = self.layout.shape
        differ = self.classes_of(a) != self.classes_of(b)  # [D]
        order = differ.cumsum(0) * differ  # 1, 2, … for those that differ
        changed = order <= (t * differ.sum()).round().unsqueeze(1)  # [S, D]
        return torch.where(changed.unsqueeze(-1), b.view(shape), a.view(shape)).flatten(1)

    def traverse(self, starts: Tensor, means: Tensor, units: Tensor, offsets: Tensor) -> Tensor:
        """Return codes [U, S, D · K]: in each row one latent takes its classes in turn, as many as there is room for.

        S is the number of offsets, or K where that is less; how far they are plays no part.
        """
        latents, classes = self.layout.shape
        taken = torch.linspace(0, classes - 1, min(len(offsets), classes)).round().long()
        codes = starts.expand(len(units), -1).unflatten(-1, (latents, classes)).unsqueeze(1).repeat(1, len(taken), 1, 1)
        for row, latent in zip(codes, units.tolist(), strict=True):
            row[:, latent] = F.one_hot(taken, classes).to(row)
        return codes.flatten(2)

    def kl_by_layer(self, q: Any, p: Any, z: Tensor) -> list[Tensor]:
        """Return KL(q ‖ p) = Σ_k q_k log(q_k / p_k) of each latent [B, D], nats: between 0 and log K for uniform p."""
        return [(q.logits.exp() * (q.logits - p.logits)).sum(-1)]
