"""Objectives: Output → the scalar to minimise and the named terms to report.

The one place that averages over the batch. Every term is in nats. Whatever is minimised, `elbo`, `reconstruction`, `kl`
and `bound` mean the same: KL weight 1, no free bits; all but the bound are means over the draws of z.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Independent

from vae_cli import parallel, randomness
from vae_cli.data import Resident
from vae_cli.distribution import is_diagonal
from vae_cli.errors import UserError
from vae_cli.metrics import Evaluation, enough_draws, log_likelihood
from vae_cli.model.layers import dense
from vae_cli.vae import VAE, Output


@dataclass
class Terms:
    """The loss and what is reported beside it."""

    loss: Tensor  # []
    elbo: Tensor  # []
    reconstruction: Tensor  # [] mean log p(x|z)
    kl: Tensor  # []
    extra: dict[str, Tensor] = field(default_factory=dict)  # [] each, the objective's own terms


class Objective(nn.Module):
    """Base of the objectives: subclasses say what is minimised in `loss`.

    Attributes:
        extra: names of the terms reported besides ELBO, reconstruction and KL.
        selection: name of the number that the best weights are chosen by, `valid/…`.
        joins: whether the loss joins the examples of a batch, other than by a mean: it then sees those of all ranks.
    """

    extra: tuple[str, ...] = ()
    selection = "elbo"
    joins = False

    def __init__(self, *, samples: int = 1):
        super().__init__()
        self.samples = samples

    def forward(
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
        with randomness.own_rows():
            output = vae(x, y, samples=self.samples)
        if self.joins:
            output = joined(vae, output, y)
        reconstruction, kl = output.log_likelihood.detach().mean(), output.kl.detach().sum(-1).mean()
        loss, extra = self.loss(vae, output, weight, free_bits, target)
        return Terms(loss, reconstruction - kl, reconstruction, kl, extra)

    def loss(
        self, vae: VAE, output: Output, weight: Tensor | float, free_bits: float, target: Tensor | float | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and the objective's own terms."""
        raise NotImplementedError

    def score(self, vae: VAE, data: Resident, result: Evaluation) -> float:
        """Return the number that the best weights are chosen by, from validation examples and their evaluation."""
        return result.elbo

    def groups(self) -> list[dict[str, Any]]:
        """Return parameter groups to optimise beside the model's, with settings of their own."""
        return []


class ELBO(Objective):
    """−E_q[log p(x|z)] + β · KL(q ‖ p), averaged over the batch (Kingma & Welling 2014, eq. 3).

    Args:
        samples: K, draws of z for each example.
    """

    def loss(self, vae, output, weight, free_bits, target):
        """Return β · (KL with free bits or a target) − reconstruction."""
        return weight * kl_penalty(output, free_bits, target) - output.log_likelihood.mean(), {}


class IWAE(Objective):
    """−E log 1/K Σ_k w_k, w = p(x|z) (p(z)/q(z|x))^β (Burda et al. 2016, eq. 8; β = 1 there).

    Args:
        samples: K, draws of z for each example.
        gradient: of the encoder. `standard`: the bound's own. `stl`: without the score of q (Roeder et al. 2017);
            unbiased for K = 1 alone. `dreg`: doubly reparameterised (Tucker et al. 2019, eq. 8): unbiased, and its
            signal does not drown in noise as K grows.
    """

    extra = ("bound",)
    selection = "bound"

    def __init__(self, *, samples: int = 50, gradient: str = "dreg"):
        super().__init__(samples=samples)
        self.gradient = gradient

    def loss(self, vae, output, weight, free_bits, target):
        """Return −log 1/K Σ w; its gradient is Σ_k w̃_k ∇log w_k, w̃ the normalised weights, or a variant of it.

        With q held in log q, its score is missing, whose expectation is −β Σ_k w̃_k (1 − w̃_k) ∂log w_k/∂z: `dreg`
        scales the gradient of z_k by 1 − β(1 − w̃_k), which is w̃_k for β = 1.
        """
        q, z = output.posterior, output.z
        if self.gradient == "standard":
            log_q = q.log_prob(z)
        else:
            with held(vae):  # q may have weights in common with p (model=ladder): none of them moves log q
                log_q = vae.posterior(output.features.detach()).log_prob(z)
        log_ratio = output.prior.log_prob(z) - log_q
        log_w = output.log_likelihood + weight * log_ratio
        share = log_w.detach().softmax(0)
        if self.gradient == "dreg" and z.requires_grad:
            z.register_hook(lambda gradient: (1.0 - weight * (1.0 - share)).unsqueeze(-1) * gradient)
        surrogate, value = (share * log_w).sum(0).mean(), log_mean(log_w.detach())
        bound = log_mean((output.log_likelihood + log_ratio).detach())
        return -(surrogate + (value - surrogate).detach()), {"bound": bound}

    def score(self, vae, data, result):
        """Return the bound of as many draws as training takes, for validation examples.

        It is the mean of as many such bounds as give enough draws in all.
        """
        bounds = math.ceil(enough_draws(vae, data) / self.samples)
        found = [log_likelihood(vae, data, samples=self.samples, seed=seed).mean for seed in range(bounds)]
        return math.fsum(found) / bounds


def log_mean(log_w: Tensor) -> Tensor:
    """Return the mean over the batch of log 1/K Σ_k w_k [], for log w [K, B]."""
    return (torch.logsumexp(log_w, 0) - math.log(len(log_w))).mean()


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
    """

    extra = ("mutual_information", "total_correlation", "dimension_kl")
    joins = True

    def __init__(
        self,
        *,
        examples: int,
        alpha: float = 1.0,
        beta: float = 6.0,
        gamma: float = 1.0,
        weights: str = "stratified",
        samples: int = 1,
    ):
        super().__init__(samples=samples)
        self.alpha, self.beta, self.gamma, self.weights, self.examples = alpha, beta, gamma, weights, examples

    def loss(self, vae, output, weight, free_bits, target):
        """Return the three terms weighted, less the reconstruction."""
        terms = dict(zip(self.extra, self.decompose(output), strict=True))
        mutual, correlation, dimensions = terms.values()
        penalty = self.alpha * mutual + self.beta * correlation + self.gamma * dimensions
        return weight * penalty - output.log_likelihood.mean(), {name: term.detach() for name, term in terms.items()}

    def decompose(self, output: Output) -> tuple[Tensor, Tensor, Tensor]:
        """Return mutual information, total correlation and dimension-wise KL, each []; z [K, B, D]."""
        q, z = output.posterior, output.z
        if not is_diagonal(q) or not isinstance(q, Independent):
            raise UserError("objective=beta_tc: needs q(z|x) of independent dimensions; posterior=gaussian is allowed")
        each = q.base_dist.log_prob(z.unsqueeze(-2))  # [K, B, M, D] log q(z_i,j|x_m)
        log_weights = self._log_weights(z.shape[1], z)
        log_qz = torch.logsumexp(each.sum(-1) + log_weights, -1)
        log_product = torch.logsumexp(each + log_weights.unsqueeze(-1), -2).sum(-1)
        mutual, correlation = q.log_prob(z) - log_qz, log_qz - log_product
        return mutual.mean(), correlation.mean(), (log_product - output.prior.log_prob(z)).mean()

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


class MMD(ELBO):
    """The ELBO's loss + λ · MMD²(q(z), p(z)) (InfoVAE, Zhao et al. 2019, eq. 6).

    Their α and λ are kl.weight = 1 − α and weight = α + λ − 1. The unbiased estimate of MMD² under k(u, v) is taken
    between the batch's first draws of z and as many draws of the prior.

    Args:
        weight: λ.
        kernel: `rbf`, exp(−|u − v|²/h), or `imq`, h/(h + |u − v|²).
        bandwidth: h; None for 2 D, the expected squared distance of two draws of N(0, I).
        samples: K, draws of z for each example.
    """

    extra = ("mmd",)
    joins = True

    def __init__(self, *, weight: float = 100.0, kernel: str = "imq", bandwidth: float | None = None, samples: int = 1):
        super().__init__(samples=samples)
        self.weight, self.kernel, self.bandwidth = weight, kernel, bandwidth

    def loss(self, vae, output, weight, free_bits, target):
        """Return the ELBO's loss plus λ · MMD²."""
        z, prior = output.z[0], output.prior
        drawn = prior.sample((len(z),) if not prior.batch_shape else ())
        mmd = self.squared(z, drawn)
        loss, _ = super().loss(vae, output, weight, free_bits, target)
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
    """

    extra = ("total_correlation", "discriminator_loss")
    joins = True

    def __init__(
        self,
        *,
        latent_dim: int,
        weight: float = 10.0,
        hidden: Sequence[int] = (256, 256, 256),
        lr: float = 1e-4,
        samples: int = 1,
    ):
        super().__init__(samples=samples)
        self.weight, self.lr = weight, lr
        self.discriminator = nn.Sequential(dense([latent_dim, *hidden], "leaky_relu"), nn.Linear(hidden[-1], 1))

    def groups(self) -> list[dict[str, Any]]:
        """Return the discriminator's parameters with its learning rate (and the paper's β_1 and β_2)."""
        return [{"params": list(self.parameters()), "lr": self.lr, "betas": (0.5, 0.9), "weight_decay": 0.0}]

    def loss(self, vae, output, weight, free_bits, target):
        """Return the ELBO's loss, plus γ · the estimated total correlation, plus the discriminator's own loss."""
        z = output.z[0]
        with held(self.discriminator):
            correlation = self.discriminator(z).mean()  # the logit is log q(z)/Π_j q(z_j)
        half = len(z) // 2
        real, other = z.detach()[: len(z) - half], permute_dimensions(z.detach()[len(z) - half :])
        own = 0.5 * (
            F.softplus(-self.discriminator(real)).mean()
            + (F.softplus(self.discriminator(other)).mean() if half else 0.0)
        )
        loss, _ = super().loss(vae, output, weight, free_bits, target)
        extra = {"total_correlation": correlation.detach(), "discriminator_loss": own.detach()}
        return loss + self.weight * correlation + own, extra


def joined(vae: VAE, output: Output, y: Tensor | None) -> Output:
    """Return the terms of all ranks' examples."""
    if parallel.count() == 1:
        return output
    features, prior = parallel.gather(output.features), output.prior
    if prior.batch_shape:
        assert y is not None
        prior = vae.prior(vae.conditioning(parallel.gather(y)))
    return Output(
        log_likelihood=parallel.gather(output.log_likelihood, 1),
        kl=parallel.gather(output.kl),
        layers=output.layers,
        z=parallel.gather(output.z, 1),
        posterior=vae.posterior(features),
        prior=prior,
        features=features,
    )


def permute_dimensions(z: Tensor) -> Tensor:
    """Return z [B, D] with each dimension permuted across the batch by itself: draws of Π_j q(z_j)."""
    return z.gather(0, torch.rand_like(z).argsort(0))


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Keep gradients from a module's parameters within the block; what passes through it still has them."""
    own = [p for p in module.parameters() if p.requires_grad]
    for p in own:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in own:
            p.requires_grad_(True)


def kl_penalty(output: Output, free_bits: float, target: Tensor | float | None) -> Tensor:
    """Return what the KL weight multiplies: Σ_j max(λ, mean over the batch of KL_j), or its distance to a target.

    The mean stands inside the maximum (Kingma et al. 2016, eq. 16); |KL − C| is Burgess et al. 2018, eq. 8. Where a
    layer's d dimensions are not independent, one maximum with d·λ stands for them all.
    """
    by_column = output.kl.mean(0)
    if free_bits > 0.0 or target is not None:  # of the whole batch: neither is linear
        by_column = parallel.mean(by_column)
    if free_bits > 0.0:
        parts = by_column.split([columns for columns, _ in output.layers])
        by_column = torch.cat(
            [
                part.clamp(min=free_bits * dims / columns)
                for part, (columns, dims) in zip(parts, output.layers, strict=True)
            ]
        )
    total = by_column.sum()
    return total if target is None else (total - target).abs()
