"""KL divergences that torch lacks, dimension by dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence, register_kl

from vae_cli.distribution.gaussian import is_diagonal


def kl_by_dimension(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Return KL(q ‖ p), nats: [B, D] in closed form where p factorises over dimensions, else [B, 1].

    For q with correlated dimensions the columns are the terms of the chain rule, E KL(q(z_j|z_<j) ‖ p(z_j)). Where no
    closed form is registered it is the Monte Carlo estimate mean_k [log q(z_k) − log p(z_k)], z [K, B, D].
    """
    if isinstance(q, MultivariateNormal) and is_diagonal(p):
        return _chain_rule(q, p.base_dist)  # type: ignore[attr-defined]
    try:
        if isinstance(q, Independent) and isinstance(p, Independent):
            return _kl_of_elements(q.base_dist, p.base_dist)
        return kl_divergence(q, p).unsqueeze(-1)
    except NotImplementedError:
        return (q.log_prob(z) - p.log_prob(z)).mean(0).unsqueeze(-1)


def _kl_of_elements(q: Distribution, p: Distribution) -> Tensor:
    """Return KL(q ‖ p) of independent elements; fused where p is a fixed Gaussian and the step is not compiled."""
    if not isinstance(q, Normal) or not isinstance(p, Normal) or torch.compiler.is_compiling():
        return kl_divergence(q, p)
    if p.loc.requires_grad or p.scale.requires_grad:
        return kl_divergence(q, p)
    return _DiagonalKL.apply(q.loc, q.scale, p.loc, p.scale)


class _DiagonalKL(torch.autograd.Function):
    """½[r² + d² − 1] − log r, r = σ_q/σ_p, d = (μ_q − μ_p)/σ_p, for p without gradients, in few small operations."""

    @staticmethod
    def forward(ctx: Any, loc: Tensor, scale: Tensor, other_loc: Tensor, other_scale: Tensor) -> Tensor:
        """Return KL(N(loc, scale²) ‖ N(other_loc, other_scale²)) of each element, nats."""
        ratio, shift = scale / other_scale, (loc - other_loc) / other_scale
        ctx.save_for_backward(ratio, shift, other_scale)
        ctx.shapes = loc.shape, scale.shape
        return torch.addcmul(ratio * ratio, shift, shift).sub_(1.0).mul_(0.5).sub_(ratio.log())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Return d/σ_p and (r − 1/r)/σ_p times the gradient."""
        ratio, shift, other_scale = ctx.saved_tensors
        gradient = gradient / other_scale
        grads = shift * gradient, (ratio - ratio.reciprocal()) * gradient
        loc, scale = (grad.sum_to_size(shape) for grad, shape in zip(grads, ctx.shapes, strict=True))
        return loc, scale, None, None


def _chain_rule(q: MultivariateNormal, p: Normal) -> Tensor:
    """Return ½[(Σ_jj + (μ_j − m_j)²)/s_j² − 1] − log(L_jj/s_j) for each dimension j, Σ = LLᵀ: [B, D]."""
    tril = q.scale_tril
    diagonal = tril.diagonal(dim1=-2, dim2=-1)
    square = (tril.square().sum(-1) + (q.loc - p.loc).square()) / p.scale.square()
    return 0.5 * (square - 1.0) - (diagonal / p.scale).log()


@register_kl(MultivariateNormal, Independent)
def _full_from_diagonal(q: MultivariateNormal, p: Independent) -> Tensor:
    if not is_diagonal(p):
        raise NotImplementedError
    return _chain_rule(q, p.base_dist).sum(-1)
