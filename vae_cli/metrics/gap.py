"""Where the gap between log p(x) and the ELBO comes from (Cremer et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.data import Resident
from vae_cli.metrics.elbo import decodes_at_once, evaluation_mode
from vae_cli.metrics.importance import log_likelihood, standard_error
from vae_cli.vae import VAE

LAST = 0.2  # the fraction of the steps that the optimum is averaged over
FINAL = 50  # times so many draws that its ELBO is computed from


def amortisation(
    vae: VAE, data: Resident, *, samples: int, steps: int = 500, draws: int = 10, lr: float = 0.02, seed: int = 0
) -> dict[str, float]:
    """Split log p(x) − ELBO of a (small) set of examples into amortisation and approximation gap, nats.

    The parameters of q(z|x) of each example are optimised by Adam, everything else fixed: q*, their mean over the last
    steps, is near the best member of the posterior's family, so that amortisation is a lower and approximation an upper
    bound. amortisation = ELBO(q*) − ELBO(q), what one encoder for all examples costs; approximation =
    log p(x) − ELBO(q*), what the family costs. log p(x) has `samples` importance samples.
    """
    exact = log_likelihood(vae, data, samples=samples, seed=seed)
    best = []
    with evaluation_mode(vae, seed):
        for batch in data.batches(max(1, decodes_at_once(vae) // (4 * draws))):
            best.append(_optimised_elbo(vae, batch, steps, draws, lr))
    amortised = torch.cat(best).cpu().to(exact.elbo.dtype) - exact.elbo
    approximation = exact.gap - amortised
    return {
        "amortisation_gap": float(amortised.mean()),
        "amortisation_gap_stderr": standard_error(amortised),
        "approximation_gap": float(approximation.mean()),
        "approximation_gap_stderr": standard_error(approximation),
    }


def _optimised_elbo(vae: VAE, batch: Batch, steps: int, draws: int, lr: float) -> Tensor:
    """Return the ELBO [B] of each example under a q of its own."""
    with torch.no_grad():
        c, start = vae.conditioning(batch.y), vae.parameters_of(batch)
    own = start.clone().requires_grad_(True)
    optimizer, total, counted = torch.optim.Adam([own], lr=lr), torch.zeros_like(start), 0

    def elbo_of(parameters: Tensor, draws: int) -> Tensor:
        draw = vae.latent.infer(parameters, c, draws)
        return vae.log_prob(vae.decode_given(draw.z, c), batch).mean(0) - draw.kl.sum(-1)

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1.0 - step / steps)
        with torch.enable_grad():
            (own.grad,) = torch.autograd.grad(-elbo_of(own, draws).sum(), [own])
        optimizer.step()
        if step >= (1.0 - LAST) * steps:
            total += own.detach()
            counted += 1
    with torch.no_grad():
        return torch.stack([elbo_of(total / counted, draws) for _ in range(FINAL)]).mean(0)
