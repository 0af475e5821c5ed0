"""Objectives: Output → the scalar to minimise and the named terms to report.

The one place that averages over the batch. Every term is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_cli.vae import VAE, Output


@dataclass
class Terms:
    """The loss and what is reported beside it; `elbo` has KL weight 1 and no free bits, whatever is trained."""

    loss: Tensor  # []
    elbo: Tensor  # []
    reconstruction: Tensor  # [] mean log p(x|z)
    kl: Tensor  # []


class ELBO:
    """−E_q[log p(x|z)] + β · KL(q ‖ p), averaged over the batch (Kingma & Welling 2014, eq. 3).

    Args:
        samples: K, draws of z for each example.
    """

    def __init__(self, *, samples: int = 1):
        self.samples = samples

    def __call__(
        self,
        vae: VAE,
        x: Tensor,
        y: Tensor | None,
        *,
        weight: Tensor | float,
        free_bits: float = 0.0,
        target: Tensor | float | None = None,
    ) -> Terms:
        """Return the terms of a batch x [B, *shape] under a KL weight β, free bits λ and a KL target C (or None)."""
        output = vae(x, y, samples=self.samples)
        reconstruction = output.log_likelihood.mean()
        kl = output.kl.sum(-1).mean()
        loss = weight * kl_penalty(output, free_bits, target) - reconstruction
        return Terms(loss, (reconstruction - kl).detach(), reconstruction.detach(), kl.detach())


def kl_penalty(output: Output, free_bits: float, target: Tensor | float | None) -> Tensor:
    """Return what the KL weight multiplies: Σ_j max(λ, mean over the batch of KL_j), or its distance to a target.

    The mean stands inside the maximum (Kingma et al. 2016, eq. 16); |KL − C| is Burgess et al. 2018, eq. 8.
    """
    by_dimension = output.kl.mean(0)
    if free_bits > 0.0:
        by_dimension = torch.clamp(by_dimension, min=free_bits)
    total = by_dimension.sum()
    return total if target is None else (total - target).abs()
