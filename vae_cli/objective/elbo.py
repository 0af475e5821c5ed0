"""The evidence lower bound."""

from __future__ import annotations

from torch import Tensor

from vae_cli.config.types import Count
from vae_cli.objective.base import Objective, Penalty
from vae_cli.vae import VAE, Output


class ELBO(Objective):
    """−E_q[log p(x|z)] + β · KL(q ‖ p), averaged over the batch (Kingma & Welling 2014, eq. 3).

    Args:
        samples: K, draws of z for each example.

    >>> import torch
    >>> from vae_cli.batch import Batch
    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose(), Spec((4,), 2, 0.0, 1.0))  # four binary elements
    >>> terms = ELBO(samples=1)(vae, Batch(torch.ones(5, 4)), Penalty())
    >>> torch.allclose(terms.loss, -terms.elbo)
    True
    """

    def __init__(self, *, samples: Count):
        super().__init__(samples=samples)

    def loss(self, vae: VAE, output: Output, penalty: Penalty) -> tuple[Tensor, dict[str, Tensor]]:
        """Return β · (KL with free bits or a target) − reconstruction."""
        return penalty(output.draw) - output.log_likelihood.mean(), {}
