"""Missing elements of x filled in with their mean given the others, and by turns of draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.metrics import decodes_at_once
from vae_cli.vae import VAE

CHAINS = 20  # pseudo-Gibbs chains whose posteriors propose z where the encoder was never shown what is missing
DECODED = 2**16  # z that are decoded at once at most


@torch.no_grad()
def by_importance(vae: VAE, batch: Batch, *, samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """Return E[x|what is known] [B, *shape] and the effective number of draws [B] (Mattei & Frellsen 2019, eq. 11).

    Self-normalised importance sampling: Σ_k w_k E[x|z_k] / Σ_k w_k with w = p(known of x|z) p(z) / r(z), z ~ r. The
    proposal r is q(z|known of x), or where the encoder knows no missing values a mixture: see `_proposals`.

    Args:
        vae: in evaluation mode.
        batch: the examples, `known` given.
        samples: K, at least; rounded up to a multiple of the mixture's components.
        steps: turns of the chains.
    """
    many = max(1, min(DECODED, decodes_at_once(vae)) // CHAINS)
    parts = [batch.rows(slice(start, start + many)) for start in range(0, len(batch.x), many)]
    means, effective = zip(*(_weighted(vae, part, samples, steps) for part in parts), strict=True)
    return torch.cat(means), torch.cat(effective)


def _weighted(vae: VAE, batch: Batch, samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """As `by_importance`, for as many examples as are decoded at once with one draw of every chain."""
    c, parameters = vae.conditioning(batch.y), _proposals(vae, batch, steps)
    chains, n = parameters.shape[:2]
    q, p = vae.latent.q(parameters.flatten(0, 1)), vae.latent.p(c)
    sums, left = WeightedMean(), math.ceil(samples / chains)
    while left > 0:
        draws = min(left, max(1, min(DECODED, decodes_at_once(vae)) // (chains * n)))
        z = q.rsample((draws,)).unflatten(1, (chains, n)).flatten(0, 1)
        given = vae.decode_given(z, c)
        log_w = vae.log_prob(given, batch) + p.log_prob(z) - _log_mixture(q, z, chains)
        sums.add(log_w, given.mean)
        left -= draws
    return sums.mean, sums.effective


def _log_mixture(q: torch.distributions.Distribution, z: Tensor, chains: int) -> Tensor:
    """Return log 1/M Σ_m q_m(z) [K, B] for z [K, B, D], q of batch [M · B] and M = `chains`."""
    each = q.log_prob(z.unsqueeze(1).expand(-1, chains, -1, -1).flatten(1, 2)) if chains > 1 else q.log_prob(z)
    return each.unflatten(1, (chains, z.shape[1])).logsumexp(1) - math.log(chains)


class WeightedMean:
    """Σ w x / Σ w of weights that come a part at a time as logarithms, of any size."""

    def __init__(self) -> None:
        self.top: Tensor | None = None  # [B] the largest log w so far, of which all are taken apart

    def add(self, log_w: Tensor, x: Tensor) -> None:
        """Take in draws x [K, B, …] with weights log w [K, B]."""
        largest = log_w.amax(0)
        if self.top is None:
            self.top, self.total, self.squares = largest, torch.zeros_like(largest), torch.zeros_like(largest)
            self.sum = torch.zeros_like(x[0])
        top = torch.maximum(self.top, largest)
        before, w = (self.top - top).exp(), (log_w - top).exp()
        self.total = self.total * before + w.sum(0)
        self.squares = self.squares * before.square() + w.square().sum(0)
        self.sum = self._each(before) * self.sum + (self._each(w) * x).sum(0)
        self.top = top

    def _each(self, weights: Tensor) -> Tensor:
        return weights.view(*weights.shape, *(1,) * (self.sum.ndim - 1))

    @property
    def mean(self) -> Tensor:
        """Σ w x / Σ w, [B, …]."""
        return self.sum / self._each(self.total)

    @property
    def effective(self) -> Tensor:
        """(Σ w)² / Σ w², [B]: how many of the draws carry the mean."""
        return self.total.square() / self.squares


def _proposals(vae: VAE, batch: Batch, steps: int) -> Tensor:
    """Return parameters [M, B, P] of posteriors whose mixture is near p(z|known of x).

    That is q(z|known of x) of an encoder that is shown what is known. Else p(z|known) = ∫ p(z|x) p(missing|known), so
    the mixture of q(z|x) over several pseudo-Gibbs draws of x comes close; one, where q at draws of others is costly.
    """
    if vae.missing:
        return vae.parameters_of(batch).unsqueeze(0)
    chains = CHAINS if "cheap density" in getattr(vae.latent.posterior, "gives", ()) else 1
    tiled = batch.rows(torch.arange(len(batch.x), device=batch.x.device).repeat(chains))
    filled, _ = by_turns(vae, tiled, steps=steps)
    return vae.parameters_of(Batch(filled, tiled.y)).unflatten(0, (chains, len(batch.x)))


@torch.no_grad()
def by_turns(vae: VAE, batch: Batch, *, steps: int) -> tuple[Tensor, Tensor]:
    """Return x [B, *shape] with what is missing drawn, and what p(x|z) then shows (pseudo-Gibbs, Rezende et al. 2014).

    z ~ q(z|x), then the missing of x ~ p(x|z), again and again. What is drawn on the way may lie beyond the data's
    range (a Gaussian knows none).
    """
    known = batch.known
    assert known is not None
    p = vae.decode(vae.latent.generate(len(batch.x), vae.conditioning(batch.y)), batch.y)
    whole = torch.ones_like(known) if vae.missing else None
    filled = torch.where(known, batch.x, p.sample())
    for _ in range(steps):
        p = vae.decode(vae.encode(Batch(filled, batch.y, whole)).sample(), batch.y)
        filled = torch.where(known, batch.x, p.sample())
    return filled, vae.likelihood.picture(p)
