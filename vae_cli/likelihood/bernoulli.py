"""Binary data."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution

from vae_cli.likelihood.base import Elements, Likelihood, split
from vae_cli.likelihood.support import Binary


class _BernoulliLogProb(torch.autograd.Function):
    """Σ x·l − softplus(l) over the last `dims` axes in few passes over memory; its gradient in l is x − σ(l)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, dims: int) -> Tensor:
        """Return log p(x) [*batch] of logits and x that broadcast to [*batch, *event]."""
        ctx.save_for_backward(logits, x)
        ctx.dims = dims
        terms = torch.addcmul(F.softplus(logits), x, logits, value=-1.0)
        return terms.flatten(terms.ndim - dims).sum(-1).neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Return (x − σ(l)) times the gradient of each sum; summed over what the logits were broadcast to."""
        logits, x = ctx.saved_tensors
        sigma = logits.sigmoid()
        same = torch.broadcast_shapes(x.shape, logits.shape) == logits.shape
        error = torch.sub(x, sigma, out=sigma if same else None)
        return error.mul_(gradient[(..., *[None] * ctx.dims)]).sum_to_size(logits.shape), None, None


class BernoulliElements(Elements):
    """Bernoulli with logits l: log p(x) = x·l − softplus(l). Values between 0 and 1 give the cross-entropy."""

    batched = ("logits",)

    def __init__(self, logits: Tensor, event_dims: int):
        super().__init__(logits, event_dims)
        self.logits = logits

    @property
    def mean(self) -> Tensor:
        """σ(l)."""
        return self.logits.sigmoid()

    @property
    def mode(self) -> Tensor:
        """1 where l > 0, else 0."""
        return (self.logits > 0).to(self.logits.dtype)

    @property
    def variance(self) -> Tensor:
        """σ(l) σ(−l)."""
        return self.logits.sigmoid() * (-self.logits).sigmoid()

    def element_entropy(self) -> Tensor:
        """Return −log p at the mean, which is −E[log p]: log p is linear in x."""
        return -self.element_log_prob(self.mean)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return x·l − softplus(l)."""
        return x * self.logits - F.softplus(self.logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) [*batch], nats: fused where x asks for no gradient and the step is not compiled."""
        plain = type(self) is not BernoulliElements or x.requires_grad or torch.compiler.is_compiling()
        if plain or self.logits.dtype != x.dtype:
            return super().log_prob(x)
        return _BernoulliLogProb.apply(self.logits, x, len(self.event_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw 0 or 1 with probability σ(l)."""
        return torch.bernoulli(self.mean.expand(self._extended_shape(sample_shape)))


class Bernoulli(Likelihood):
    """Binary data: one logit for each element, never a clamped probability.

    >>> p = Bernoulli()(torch.zeros(5, 1, 4), 1)  # logits 0: a fair coin for each of four elements
    >>> round(float(p.log_prob(torch.ones(4))[0]), 4)  # 4 log ½
    -2.7726
    """

    support = Binary()
    gives = ("mass",)

    def forward(self, outputs: Tensor, event_dims: int, c: Tensor | None = None) -> Distribution:
        """Map logits [..., 1, *shape] to p(x|z)."""
        return BernoulliElements(split(outputs, event_dims)[0], event_dims)

    def outputs_for(self, mean: Tensor) -> Tensor:
        """Return the outputs [1, *shape] whose mean is the given one [*shape], within (0.001, 0.999)."""
        return torch.logit(mean.clamp(0.001, 0.999)).unsqueeze(0)
