"""The ELBO and a total correlation by a discriminator."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_cli.config.types import Count, NonNegative, Positive, SomeWidths
from vae_cli.model.layers import dense
from vae_cli.objective.base import Penalty, frozen
from vae_cli.objective.elbo import ELBO
from vae_cli.vae import VAE, Output


class Factor(ELBO):
    """The ELBO's loss + γ · TC(z) by a discriminator's density ratio (FactorVAE, Kim & Mnih 2018, eq. 3).

    The discriminator tells draws of q(z) from draws whose dimensions were permuted across the batch; it learns from
    detached draws in the same backward pass, real ones of the batch's first half against permuted ones of the second.

    Args:
        latent_dim: D, dimensions of z.
        weight: γ.
        hidden: widths of the discriminator.
        lr: of the discriminator.
        samples: K, draws of z for each example.

    >>> from vae_cli.batch import Batch
    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose("model.latent_dim=3"), Spec((4,), 2, 0.0, 1.0))  # four binary elements
    >>> objective = Factor(latent_dim=3, weight=10.0, hidden=[8], lr=1e-4, samples=1)
    >>> sorted(objective(vae, Batch(torch.ones(5, 4)), Penalty()).extra)
    ['discriminator_loss', 'total_correlation']
    """

    extra = ("total_correlation", "discriminator_loss")
    joins = True
    needs = {"one layer": "the layers of {latent} depend on one another"}
    refuses = {"discrete": "permuted elements of one-hot codes are no codes"}

    def __init__(
        self,
        *,
        latent_dim: int,
        weight: NonNegative,
        hidden: SomeWidths,
        lr: Positive,
        samples: Count,
    ):
        super().__init__(samples=samples)
        self.weight, self.lr = weight, lr
        self.discriminator = nn.Sequential(dense([latent_dim, *hidden], "leaky_relu"), nn.Linear(hidden[-1], 1))

    def groups(self) -> list[dict[str, Any]]:
        """Return the discriminator's parameters with its learning rate (and the paper's β_1 and β_2)."""
        return [{"params": list(self.parameters()), "lr": self.lr, "betas": (0.5, 0.9), "weight_decay": 0.0}]

    def loss(self, vae: VAE, output: Output, penalty: Penalty) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the ELBO's loss, plus γ · the estimated total correlation, plus the discriminator's own loss."""
        z = output.z[0]
        with frozen(self.discriminator):
            correlation = self.discriminator(z).mean()  # the logit is log q(z)/Π_j q(z_j)
        half = len(z) // 2
        real, other = z.detach()[: len(z) - half], permute_dimensions(z.detach()[len(z) - half :])
        own = 0.5 * (
            F.softplus(-self.discriminator(real)).mean()
            + (F.softplus(self.discriminator(other)).mean() if half else 0.0)
        )
        loss, _ = super().loss(vae, output, penalty)
        extra = {"total_correlation": correlation.detach(), "discriminator_loss": own.detach()}
        return loss + self.weight * correlation + own, extra


def permute_dimensions(z: Tensor) -> Tensor:
    """Return z [B, D] with each dimension permuted across the batch by itself: draws of Π_j q(z_j)."""
    return z.gather(0, torch.rand_like(z).argsort(0))
