"""The ELBO and a maximum mean discrepancy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vae_cli.config.types import Count, NonNegative, Positive
from vae_cli.objective.base import Penalty
from vae_cli.objective.elbo import ELBO
from vae_cli.vae import VAE, Output


class MMD(ELBO):
    """The ELBO's loss + λ · MMD²(q(z), p(z)) (InfoVAE, Zhao et al. 2019, eq. 6).

    Their α and λ are kl.weight = 1 − α and weight = α + λ − 1. The unbiased estimate of MMD² under k(u, v) is taken
    between the batch's first draws of z and as many draws of the prior.

    Args:
        weight: λ.
        kernel: `rbf`, exp(−|u − v|²/h), or `imq`, h/(h + |u − v|²).
        bandwidth: h; None for 2 D, the expected squared distance of two draws of N(0, I).
        samples: K, draws of z for each example.

    >>> objective = MMD(weight=100.0, kernel="imq", bandwidth=None, samples=1)
    >>> near, far = (float(objective.squared(torch.randn(500, 2), torch.randn(500, 2) + shift)) for shift in (0.0, 3.0))
    >>> abs(near) < 0.05 < far
    True
    """

    extra = ("mmd",)
    joins = True
    needs = {"fixed prior": ("nothing would train {prior} with {objective}", {"kl.weight": [0]})}

    def __init__(
        self,
        *,
        weight: NonNegative,
        kernel: Literal["rbf", "imq"],
        bandwidth: Positive | None,
        samples: Count,
    ):
        super().__init__(samples=samples)
        self.weight, self.kernel, self.bandwidth = weight, kernel, bandwidth

    def loss(self, vae: VAE, output: Output, penalty: Penalty) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the ELBO's loss plus λ · MMD²."""
        z, prior = output.z[0], output.draw.p
        drawn = prior.sample((len(z),) if not prior.batch_shape else ())
        mmd = self.squared(z, drawn)
        loss, _ = super().loss(vae, output, penalty)
        return loss + self.weight * mmd, {"mmd": mmd.detach()}

    def squared(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the unbiased estimate of MMD² of draws u [N, D] and v [N, D]."""
        n = max(2, len(u))
        within = sum((self._kernel(w, w).sum() - len(w)) / (n * (n - 1)) for w in (u, v))
        return within - 2.0 * self._kernel(u, v).mean()

    def _kernel(self, u: Tensor, v: Tensor) -> Tensor:
        h = self.bandwidth or 2.0 * u.shape[-1]
        square = (u.unsqueeze(1) - v.unsqueeze(0)).square().sum(-1)
        return torch.exp(-square / h) if self.kernel == "rbf" else h / (h + square)
