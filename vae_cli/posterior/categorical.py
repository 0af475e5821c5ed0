"""Classes, with gradients through a relaxation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_cli.config.types import NonNegative, Positive
from vae_cli.distribution.one_hot import OneHot
from vae_cli.posterior.base import Head, Posterior


class Categorical(Posterior):
    """q(z|x) = Π_d Categorical(z_d | logits_d), its draws one-hot.

    Gradients pass straight through a draw to its Gumbel-softmax relaxation softmax((l + g)/τ) (Jang et al. 2017), whose
    temperature τ falls geometrically from `temperature` to `final_temperature` over the first `annealing` epochs.

    Args:
        head: see `Posterior`; one output for each class of each latent.
        latent_dim: D.
        classes: K.
        temperature: τ at the start.
        final_temperature: τ at the end: gradients of less bias and more noise as it falls.
        annealing: epochs that τ takes there; 0 starts there.

    >>> head = lambda outputs, extra: torch.nn.Linear(8, 2 * 3 * outputs)
    >>> posterior = Categorical(
    ...     head=head, latent_dim=2, classes=3, temperature=1.0, final_temperature=0.5, annealing=10.0
    ... )
    >>> posterior(torch.zeros(5, 8)).rsample().shape  # one-hot, 2 latents of 3 classes
    torch.Size([5, 6])
    """

    gives = ("categorical posterior",)
    needs = {"discrete": "its draws are classes"}
    tau: Tensor

    def __init__(
        self,
        *,
        head: Head,
        latent_dim: int,
        classes: int,
        temperature: Positive,
        final_temperature: Positive,
        annealing: NonNegative,
    ):
        super().__init__(head, 1)
        self.shape = (latent_dim, classes)
        self.start, self.final, self.annealing = temperature, final_temperature, annealing
        self.register_buffer("tau", torch.tensor(self.temperature(0.0)), persistent=False)

    def temperature(self, epoch: float) -> float:
        """Return τ at an epoch."""
        done = min(1.0, epoch / self.annealing) if self.annealing else 1.0
        return self.start * (self.final / self.start) ** done

    def at_epoch(self, epoch: float) -> None:
        """Set τ to that of an epoch, before a step."""
        self.tau.fill_(self.temperature(epoch))

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return q(z|x), batch [B], event [D · K], of logits [B, D · K]."""
        return OneHot(parameters.unflatten(-1, self.shape), self.tau)
