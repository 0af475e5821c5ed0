"""One vector z."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vae_cli.latent.base import Latent, Layout


class Flat(Latent):
    """z [D], one stochastic layer: the posterior over the prior, and nothing between.

    Args:
        model: builds the posterior's head.
        latent_dim: D.
        posterior: (head, latent_dim) → q(z|x,c).
        prior: (latent, latent_dim) → p(z|c).

    >>> import torch
    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> latent = build(compose("model.latent_dim=3"), Spec((4,), 2, 0.0, 1.0)).latent
    >>> draw = latent.infer(torch.zeros(5, 6), None, samples=2)  # (μ, log σ) = 0: q is the prior
    >>> draw.z.shape, float(draw.kl.sum())
    (torch.Size([2, 5, 3]), 0.0)
    """

    gives = ("one layer", "flat")

    @staticmethod
    def decoded_shape(*, latent_dim: int) -> tuple[int | None, ...]:
        """Return the shape of the code that the model decodes: (D,)."""
        return (latent_dim,)

    def __init__(self, *, model: Any, latent_dim: int, posterior: Callable[..., Any], prior: Callable[..., Any]):
        super().__init__(Layout(((latent_dim,),)))
        self.posterior = posterior(head=partial(model.head, latent_dim), latent_dim=latent_dim)
        self.prior = prior(self, latent_dim=latent_dim)
