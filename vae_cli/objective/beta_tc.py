"""The KL split into three."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Independent

from vae_cli.config.types import Count, NonNegative
from vae_cli.distribution import is_diagonal
from vae_cli.objective.base import Objective, Penalty
from vae_cli.system.errors import UserError
from vae_cli.vae import VAE, Output


class BetaTC(Objective):
    """−E_q[log p(x|z)] + α I(x;z) + β TC(z) + γ Σ_j KL(q(z_j) ‖ p(z_j)) (Chen et al. 2018, eq. 4), times kl.weight.

    log q(z) and log q(z_j) are estimated within the batch. The last term is Σ_j log q(z_j) − log p(z), so that the
    three add up to the (Monte Carlo) KL under any prior. The constant log N of the paper's `weighted` estimates is left
    out: gradients are the same, and the terms are those of q(z) as the batch shows it (mutual information up to log B).

    Args:
        alpha: weight of the index-code mutual information.
        beta: weight of the total correlation.
        gamma: weight of the dimension-wise KL.
        weights: `stratified` or `weighted` (equal) importance weights of the batch's members.
        examples: N, training examples.
        samples: K, draws of z for each example.

    >>> from vae_cli.batch import Batch
    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose(), Spec((4,), 2, 0.0, 1.0))  # four binary elements
    >>> objective = BetaTC(examples=100, alpha=1.0, beta=6.0, gamma=1.0, weights="stratified", samples=1)
    >>> sorted(objective(vae, Batch(torch.ones(5, 4)), Penalty()).extra)
    ['dimension_kl', 'mutual_information', 'total_correlation']
    """

    extra = ("mutual_information", "total_correlation", "dimension_kl")
    joins = True
    ignores = ("kl.free_bits", "target")
    needs = {
        "one layer": "the layers of {latent} depend on one another",
        "factorised": "needs independent dimensions in q(z|x)",
    }

    def __init__(
        self,
        *,
        examples: int,
        alpha: NonNegative,
        beta: NonNegative,
        gamma: NonNegative,
        weights: Literal["stratified", "weighted"],
        samples: Count,
    ):
        super().__init__(samples=samples)
        self.alpha, self.beta, self.gamma, self.weights, self.examples = alpha, beta, gamma, weights, examples

    def loss(self, vae: VAE, output: Output, penalty: Penalty) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the three terms weighted, less the reconstruction."""
        terms = dict(zip(self.extra, self.decompose(output), strict=True))
        mutual, correlation, dimensions = terms.values()
        total = penalty.weight * (self.alpha * mutual + self.beta * correlation + self.gamma * dimensions)
        return total - output.log_likelihood.mean(), {name: term.detach() for name, term in terms.items()}

    def decompose(self, output: Output) -> tuple[Tensor, Tensor, Tensor]:
        """Return mutual information, total correlation and dimension-wise KL, each []; z [K, B, D]."""
        q, z = output.draw.q, output.z
        if not is_diagonal(q) or not isinstance(q, Independent):
            raise UserError("objective=beta_tc: needs q(z|x) of independent dimensions; posterior=gaussian is allowed")
        each = q.base_dist.log_prob(z.unsqueeze(-2))  # [K, B, M, D] log q(z_i,j|x_m)
        log_weights = self._log_weights(z.shape[1], z)
        log_qz = torch.logsumexp(each.sum(-1) + log_weights, -1)
        log_product = torch.logsumexp(each + log_weights.unsqueeze(-1), -2).sum(-1)
        mutual, correlation = q.log_prob(z) - log_qz, log_qz - log_product
        return mutual.mean(), correlation.mean(), (log_product - output.draw.p.log_prob(z)).mean()

    def _log_weights(self, b: int, like: Tensor) -> Tensor:
        if self.weights == "weighted":
            return torch.full((b, b), -math.log(b), dtype=like.dtype, device=like.device)
        return stratified_weights(b, self.examples, like).log()


def stratified_weights(b: int, n: int, like: Tensor) -> Tensor:
    """Return the weights [B, B] of members m in the estimate of q(z_i), i, m in a batch of B out of N examples.

    A member's own weight is 1/N, another's (N − M)/(N·M), the rest are 1/M, M = B − 1: each row sums to one
    (Chen et al. 2018, appendix C.2, with 1/N on the diagonal, where it belongs).
    """
    m = max(1, b - 1)
    weights = torch.full((b, b), 1.0 / m, dtype=like.dtype, device=like.device)
    index = torch.arange(b, device=like.device)
    weights[index, (index + 1) % b] = (n - m) / (n * m)
    weights[index, index] = 1.0 / n if b > 1 else 1.0
    return weights
