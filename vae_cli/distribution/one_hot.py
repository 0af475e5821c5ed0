"""Vectors of classes, written as one-hot codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import register_kl

from vae_cli.distribution.base import Explained
from vae_cli.system import randomness


class OneHot(Explained):
    """D independent classes of K each, their draws one-hot and flat: batch [*batch], event [D · K].

    Args:
        logits: [*batch, D, K], unnormalised.
        temperature: of the relaxation whose gradient a draw has; None for a distribution without one.
    """

    def __init__(self, logits: Tensor, temperature: Tensor | None = None):
        *batch, latents, classes = logits.shape
        super().__init__(torch.Size(batch), torch.Size([latents * classes]), validate_args=False)
        self.logits, self.temperature = logits.log_softmax(-1), temperature

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have a (straight-through) gradient."""
        return self.temperature is not None

    @property
    def mean(self) -> Tensor:
        """The probability of each class, [*batch, D · K]."""
        return self.logits.exp().flatten(-2)

    @property
    def variance(self) -> Tensor:
        """p (1 − p), [*batch, D · K]."""
        return self.mean * (1.0 - self.mean)

    @property
    def mode(self) -> Tensor:
        """The likeliest class of each latent, one-hot, [*batch, D · K]."""
        return _one_hot(self.logits)

    def entropy(self) -> Tensor:
        """Return −Σ_d Σ_k p_dk log p_dk [*batch], nats."""
        return -(self.logits.exp() * self.logits).sum((-2, -1))

    def expand(self, batch_shape: Any, _instance: Any = None) -> OneHot:
        """Return the same distribution with a larger batch."""
        shape = torch.Size(batch_shape) + self.logits.shape[-2:]
        return OneHot(self.logits.expand(shape), self.temperature)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log p(z) [...], nats, of one-hot codes z [..., D · K]."""
        return (z.unflatten(-1, self.logits.shape[-2:]) * self.logits).sum((-2, -1))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hot codes [*sample_shape, *batch, D · K] whose gradient is that of softmax((l + g)/τ)."""
        if self.temperature is None:
            raise NotImplementedError("draws of classes have a gradient only with a temperature")
        noisy = self.logits + self._gumbel(sample_shape)
        soft = (noisy / self.temperature).softmax(-1).flatten(-2)
        return _one_hot(noisy) + (soft - soft.detach())  # the difference is exactly 0: draws are exactly one-hot

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw one-hot codes, without gradients."""
        return _one_hot(self.logits + self._gumbel(sample_shape))

    def _gumbel(self, sample_shape: Any) -> Tensor:
        """Return −log e, e exponential, in the shape of the logits; noise belongs to the example, not to the rank."""
        shape = torch.Size(sample_shape) + self.logits.shape

        def draw(shape: Any) -> Tensor:
            return self.logits.new_empty(shape).exponential_().log_().neg_()

        return randomness.rows(draw, shape, -3) if self.logits.ndim > 2 else draw(shape)


def _one_hot(scores: Tensor) -> Tensor:
    """Return one-hot vectors of the highest of scores [..., D, K], flat: [..., D · K]."""
    return torch.zeros_like(scores).scatter_(-1, scores.argmax(-1, keepdim=True), 1.0).flatten(-2)


@register_kl(OneHot, OneHot)
def _kl(q: OneHot, p: OneHot) -> Tensor:
    return (q.logits.exp() * (q.logits - p.logits)).sum((-2, -1))
