"""A code that is a picture of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vae_cli.config.types import Count
from vae_cli.latent.base import Latent, Layout


class Spatial(Latent):
    """z [C, h, w] on the grid of the model's last stage, with 1×1 convolutions for heads on both sides.

    Args:
        model: with a grid; builds the posterior's head.
        posterior: (head, latent_dim) → q(z|x,c).
        prior: (latent, latent_dim) → p(z|c).
        channels: C.

    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose("model=conv", "latent=spatial", "latent.channels=4"), Spec((28, 28), 2, 0.0, 1.0))
    >>> vae.latent.layout.shapes, vae.latent_dim
    (((4, 7, 7),), 196)
    """

    gives = ("one layer",)
    needs = {"grid": "needs a model with a grid"}

    @staticmethod
    def decoded_shape(*, channels: int) -> tuple[int | None, ...]:
        """Return the shape of the code that the model decodes: C channels on a grid that the model knows."""
        return (channels, None, None)

    def __init__(self, *, model: Any, posterior: Callable[..., Any], prior: Callable[..., Any], channels: Count):
        super().__init__(Layout((model.latent_shape,)))
        self.posterior = posterior(head=partial(model.head, channels), latent_dim=self.layout.size)
        self.prior = prior(self, latent_dim=self.layout.size)
