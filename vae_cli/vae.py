"""The VAE: encode, sample, decode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, kl_divergence


@dataclass
class Output:
    """The terms of one forward pass, in nats."""

    log_likelihood: Tensor  # [K, B] log p(x|z_k, c)
    kl: Tensor  # [B, D] KL(q(z|x,c) ‖ p(z|c)) of each dimension; [B, 1] where dimensions are not independent
    z: Tensor  # [K, B, D]
    posterior: Distribution  # batch [B], event [D]
    prior: Distribution  # batch [] or [B], event [D]


class VAE(nn.Module):
    """p(x|c) = ∫ p(x|z,c) p(z|c) dz with the approximate posterior q(z|x,c).

    Args:
        model: encoder and decoder (`vae_cli.model`).
        posterior: features → q(z|x,c).
        prior: condition → p(z|c).
        likelihood: decoder outputs → p(x|z,c).
        conditioning: labels → condition.
        shape: of one example.
        log_volume: Σ log std of standardised data, nats: log p(x) is then that of the data's own values.
    """

    def __init__(
        self,
        *,
        model: Any,
        posterior: nn.Module,
        prior: nn.Module,
        likelihood: Any,
        conditioning: nn.Module,
        shape: tuple[int, ...],
        log_volume: float = 0.0,
    ):
        super().__init__()
        self.model: Any
        self.likelihood: Any
        self.model, self.posterior, self.prior = model, posterior, prior
        self.likelihood, self.conditioning, self.shape = likelihood, conditioning, tuple(shape)
        self.log_volume = log_volume
        self.products = torch.float32  # type of the matrix products and convolutions of encoder and decoder

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """Return q(z|x,c), batch [B], event [D], for x [B, *shape] and labels y."""
        return self._encode(x, self.conditioning(y))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """Return p(x|z,c), batch [..., B], event `shape`, for z [..., B, D] and labels y [B]."""
        return self._decode(z, self.conditioning(y))

    def forward(self, x: Tensor, y: Tensor | None = None, samples: int = 1) -> Output:
        """Return the terms of the ELBO of x [B, *shape] with K = `samples` draws of z for each example."""
        c = self.conditioning(y)
        posterior, prior = self._encode(x, c), self.prior(c)
        z = posterior.rsample((samples,))
        log_likelihood = self._decode(z, c).log_prob(x) - self.log_volume
        return Output(log_likelihood, kl_by_dimension(posterior, prior, z), z, posterior, prior)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None) -> Tensor:
        """Return the means of p(x|z,c) [n, *shape] for n draws of z from the prior; y holds n labels."""
        c = self.conditioning(y)
        prior = self.prior(c)
        z = prior.sample((n,) if not prior.batch_shape else ())
        return self._decode(z, c).mean

    def _encode(self, x: Tensor, c: Tensor | None) -> Distribution:
        with self._autocast(x):
            features = self.model.encode(x, c)
        return self.posterior(features.to(x.dtype))

    def _decode(self, z: Tensor, c: Tensor | None) -> Distribution:
        batch = z.shape[:-1]
        if c is not None and len(batch) > 1:
            c = c.expand(*batch, -1).flatten(0, -2)
        with self._autocast(z):
            outputs = self.model.decode(z.flatten(0, -2), c).to(z.dtype)
        return self.likelihood(outputs.view(*batch, *outputs.shape[1:]), len(self.shape))

    def _autocast(self, like: Tensor) -> torch.autocast:
        lower = self.products != torch.float32
        return torch.autocast(like.device.type, dtype=torch.bfloat16, enabled=lower)


def kl_by_dimension(q: Distribution, p: Distribution, z: Tensor) -> Tensor:
    """Return KL(q ‖ p), nats: [B, D] in closed form where both factorise over dimensions, else [B, 1].

    Where no closed form is registered it is the Monte Carlo estimate mean_k [log q(z_k) − log p(z_k)], z [K, B, D].
    """
    try:
        if isinstance(q, Independent) and isinstance(p, Independent):
            return kl_divergence(q.base_dist, p.base_dist)
        return kl_divergence(q, p).unsqueeze(-1)
    except NotImplementedError:
        return (q.log_prob(z) - p.log_prob(z)).mean(0).unsqueeze(-1)
