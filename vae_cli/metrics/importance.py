"""log p(x) by importance sampling from q(z|x), with its error, and the gap to the ELBO."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_cli.data import Resident
from vae_cli.distribution import exact
from vae_cli.metrics.elbo import Evaluation, decodes_at_once, enough_draws, evaluation_mode
from vae_cli.vae import VAE

BATCH = 100  # examples at once at most
FEWEST = 10  # examples from which a regression on the ELBO says more than it costs


@dataclass
class LogLikelihood:
    """Estimates for each example of a set, float64, nats."""

    log_likelihood: Tensor  # [N] log 1/K Σ_k w_k, a lower bound of log p(x) in expectation, tight as K grows
    elbo: Tensor  # [N] 1/K Σ_k log w_k, of the same draws
    effective_samples: Tensor  # [N] (Σ w)² / Σ w²: how many of the K draws carry the estimate
    curve: dict[int, float]  # k → the mean of log 1/k Σ w over groups of k draws, the IWAE bound of k samples
    samples: int  # K

    @property
    def mean(self) -> float:
        """The estimate of log p(x), averaged over examples."""
        return float(self.log_likelihood.mean())

    @property
    def stderr(self) -> float:
        """The standard error of the mean over examples."""
        return standard_error(self.log_likelihood)

    @property
    def gap(self) -> Tensor:
        """log p(x) − ELBO(x) = KL(q(z|x) ‖ p(z|x)) of each example, [N]."""
        return self.log_likelihood - self.elbo

    @property
    def gap_stderr(self) -> float:
        """The standard error of the mean gap over examples."""
        return standard_error(self.gap)


def standard_error(values: Tensor) -> float:
    """Return the standard error of a mean over examples [N]; nan for one example."""
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


@torch.no_grad()
def log_likelihood(
    vae: VAE,
    data: Resident,
    *,
    samples: int,
    seed: int = 0,
    batch_size: int | None = None,
    compiled: bool = False,
    advance: Callable[[int], None] = lambda done: None,
) -> LogLikelihood:
    """Estimate log p(x) of every example: log 1/K Σ_k p(x|z_k) p(z_k) / q(z_k|x), z_k ~ q(z|x) (Burda et al. 2016).

    `batch_size` z are decoded at a time; by default as many as a memory bound allows. `compiled` takes 20 s at
    the start. `advance` is called with the number of examples done. The random state of training is left as it was.
    """
    weigh = torch.compile(vae.log_weights) if compiled else vae.log_weights
    rows = batch_size or decodes_at_once(vae)
    many = max(1, min(BATCH, rows))
    parts, curves, done = [], [], 0
    with evaluation_mode(vae, seed):
        for batch in data.batches(many):
            log_w = weigh(batch, samples, max(1, rows // len(batch.x))).to(exact(batch.x.device))
            parts.append(torch.stack(_summaries(log_w)).cpu())
            curves.append(torch.stack([_bound(log_w, k).sum() for k in _sizes(samples)]).cpu())
            done += len(batch.x)
            advance(done)
    total, elbo, effective = torch.cat(parts, dim=1)
    means = (torch.stack(curves).sum(0) / len(data)).tolist()
    return LogLikelihood(total, elbo, effective, dict(zip(_sizes(samples), means, strict=True)), samples)


def _summaries(log_w: Tensor) -> list[Tensor]:
    """Return log 1/K Σ w, 1/K Σ log w and (Σ w)²/Σ w² of weights [K, B], each [B]."""
    total = torch.logsumexp(log_w, 0)
    effective = torch.exp(2.0 * total - torch.logsumexp(2.0 * log_w, 0))
    return [total - math.log(len(log_w)), log_w.mean(0), effective]


def _sizes(samples: int) -> list[int]:
    """Return 1, 2, 5, 10, 20, 50, … below K, and K."""
    steps = (base * 10**power for power in range(9) for base in (1, 2, 5))
    return [*(k for k in steps if k < samples), samples]


def _bound(log_w: Tensor, k: int) -> Tensor:
    """Return the mean over disjoint groups of k draws of log 1/k Σ w, [B]."""
    groups = len(log_w) // k
    grouped = log_w[: groups * k].view(groups, k, -1)
    return (torch.logsumexp(grouped, 1) - math.log(k)).mean(0)


def numbers(estimate: LogLikelihood, whole: Evaluation, examples: int) -> dict[str, float]:
    """Return the scalars of an estimate for a whole set, of which it may have seen only a part."""
    total, error = estimate.mean, estimate.stderr
    if len(estimate.log_likelihood) < examples:
        total, error = _of_the_whole(estimate, whole)
    return {
        "log_likelihood": total,
        "log_likelihood_stderr": error,
        "posterior_gap": float(estimate.gap.mean()),
        "effective_samples": float(estimate.effective_samples.mean()),
        "log_likelihood_samples": estimate.samples,
        "log_likelihood_examples": len(estimate.gap),
    }


def _of_the_whole(estimate: LogLikelihood, whole: Evaluation) -> tuple[float, float]:
    """Return the mean log p(x) of a set of N examples, of which n were sampled, and its standard error, nats.

    The ELBO, which is known of all, is the control variate: mean_n(lp) + c (ELBO_N − ELBO_n) with
    c = Cov(lp, elbo) / Var(elbo). c is near 1 where the gap is small; where the ELBO is far below log p(x) and varies
    wildly, c is near 0. The residual lp − c·elbo is uncorrelated with the ELBO, so the two errors add in quadrature.
    """
    total, elbo = estimate.log_likelihood, estimate.elbo
    c = _slope(total, elbo)
    if c == 0.0:
        return estimate.mean, estimate.stderr
    n, residual = len(total), total - c * elbo
    own = float(residual.std()) * math.sqrt((n - 1) / (n - 2) / n)  # two numbers were fitted: the mean and c
    return float(residual.mean()) + c * whole.elbo, math.hypot(own, c * whole.elbo_stderr)


def _slope(y: Tensor, x: Tensor) -> float:
    """Return Cov(y, x) / Var(x) of pairs [n]; 0 where there are too few, x is constant or something is infinite."""
    if len(x) < FEWEST:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    slope = float((x * y).sum() / (x * x).sum())
    return slope if math.isfinite(slope) else 0.0


def score(objective: Any, vae: VAE, data: Resident, result: Evaluation) -> float:
    """Return the number that the best weights are chosen by: the ELBO, or the bound of as many draws as training takes.

    The bound is the mean of as many such bounds as give enough draws in all.
    """
    if objective.selection == "elbo":
        return result.elbo
    bounds = math.ceil(enough_draws(vae, data) / objective.samples)
    found = [log_likelihood(vae, data, samples=objective.samples, seed=seed).mean for seed in range(bounds)]
    return math.fsum(found) / bounds
