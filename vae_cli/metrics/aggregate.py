"""The aggregate posterior q(z) = 1/N Σ_n q(z|x_n): how much z tells about x, and how far q(z) is from the prior."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_cli.batch import Batch
from vae_cli.data import Resident
from vae_cli.distribution import is_diagonal, mixture
from vae_cli.metrics.elbo import evaluation_mode
from vae_cli.vae import VAE

MOST = 2000  # examples at most
CHUNK = 250  # examples at once
ELEMENTS = 2**24  # log-densities of z under members at once


@torch.no_grad()
def aggregate(vae: VAE, data: Resident, *, seed: int = 0, most: int = MOST) -> dict[str, float]:
    """Return I_q(x;z) and KL(q(z) ‖ p(z)), nats, which add up to the mean KL(q(z|x) ‖ p(z)) (Hoffman & Johnson 2016).

    q(z) is the mixture of the posteriors of at most `most` examples themselves (fewer where a density is costly), so
    that the mutual information cannot exceed log of their number, which is returned beside it: near it, the mutual
    information is a lower and KL(q(z) ‖ p(z)) an upper bound of what all data would give. With a condition, q(z|c)
    and p(z|c) of one example would be needed; then only the mutual information is returned, of (x, c) and z.
    """
    n = min(most if is_diagonal(vae.encode(data.batch(slice(0, 1)))) else most // 8, len(data))
    sums = torch.zeros(2, dtype=torch.float64)
    draws = max(1, most // 4 // n)
    with evaluation_mode(vae, seed):
        batch = data.part(n, seed).batch(slice(0, n))
        posterior, prior = vae.encode(batch), vae.prior(batch.y)
        for _ in range(draws):
            z = posterior.sample()
            log_q, log_qz = posterior.log_prob(z), _log_aggregate(vae, batch, posterior, z)
            terms = log_q - log_qz, log_qz - prior.log_prob(z)
            sums += torch.stack(terms).cpu().double().mean(1) / draws
    numbers = {"mutual_information": float(sums[0]), "mutual_information_bound": math.log(n)}
    return numbers if vae.conditional else numbers | {"marginal_kl": float(sums[1])}


def _log_aggregate(vae: VAE, batch: Batch, posterior: Distribution, z: Tensor) -> Tensor:
    """Return log 1/N Σ_m q(z_n|x_m) for each n, [N]."""
    if is_diagonal(posterior):
        return mixture(posterior).log_prob(z)
    parts = []
    for start in range(0, len(batch.x), CHUNK):
        members = vae.encode(batch.rows(slice(start, start + CHUNK)))
        rows = max(1, ELEMENTS // (CHUNK * z.shape[-1] ** 2))
        each = [members.log_prob(some.unsqueeze(1)) for some in z.split(rows)]  # [rows, CHUNK]
        parts.append(torch.logsumexp(torch.cat(each), -1))
    return torch.logsumexp(torch.stack(parts), 0) - math.log(len(batch.x))
