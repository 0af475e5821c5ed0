"""The VAE: encode, sample, decode."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.distribution import kl_by_dimension
from vae_cli.errors import UserError


@dataclass
class Output:
    """The terms of one forward pass, in nats."""

    log_likelihood: Tensor  # [K, B] log p(x|z_k, c)
    kl: Tensor  # [B, C] KL(q(z|x,c) ‖ p(z|c)), a column for each dimension, or one where they are not independent
    layers: tuple[tuple[int, int], ...]  # of each stochastic layer, top first: its columns of `kl`, its dimensions
    z: Tensor  # [K, B, D]
    posterior: Distribution  # batch [B], event [D]
    prior: Distribution  # batch [] or [B], event [D]
    features: Tensor  # [B, F] of the encoder


class Encoder:
    """x, c → q(z|x,c), the lowest common part of a VAE and of a prior that encodes pseudo-inputs.

    No module of its own, so that weights are held once.

    Args:
        model: its `encode` gives features [B, F]; `features` says how many of them the posterior takes.
        posterior: features → distribution over z.
        likelihood: says what of x the model is shown.
    """

    def __init__(self, model: Any, posterior: nn.Module, likelihood: Any):
        self.model, self.posterior, self.likelihood = model, posterior, likelihood

    def features(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Return the features [B, F] of x [B, *shape]."""
        shown = self.likelihood.shown(x) if hasattr(self.likelihood, "shown") else x
        with autocast(self.model, x):
            return self.model.encode(shown, c).to(x.dtype)

    def __call__(self, x: Tensor, c: Tensor | None) -> Distribution:
        """Return q(z|x,c) of x [B, *shape] and conditions c [B, C], of the top layer where there are several."""
        return self.posterior(self.features(x, c)[:, : self.model.features])


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
        self.prior: Any
        self.posterior: Any
        self.model, self.posterior, self.prior = model, posterior, prior
        self.likelihood, self.conditioning, self.shape = likelihood, conditioning, tuple(shape)
        self.log_volume = log_volume

    @property
    def products(self) -> torch.dtype:
        """The type of the matrix products and convolutions of encoder and decoder."""
        return getattr(self.model, "products", torch.float32)

    @products.setter
    def products(self, dtype: torch.dtype) -> None:
        self.model.products = dtype

    @property
    def conditional(self) -> bool:
        """Whether the model is given labels."""
        return getattr(self.conditioning, "dim", 0) > 0

    @property
    def wants_examples(self) -> bool:
        """Whether a part starts from training examples."""
        return hasattr(self.prior, "initialize") or getattr(self.model, "bias_from_data", False)

    @torch.no_grad()
    def initialize(self, x: Tensor, y: Tensor | None) -> None:
        """Let the parts that want to start from training examples x [N, *shape], y [N] do so."""
        c = self.conditioning(y)
        if hasattr(self.prior, "initialize"):
            self.prior.initialize(x, c)
        if getattr(self.model, "bias_from_data", False):
            if not hasattr(self.likelihood, "outputs_for"):
                raise UserError("model.bias_from_data=true: no effect with this likelihood; bernoulli is allowed")
            self.model.readout.bias.copy_(self.likelihood.outputs_for(x.mean(0)).flatten())

    def encode(self, x: Tensor, y: Tensor | None = None) -> Distribution:
        """Return q(z|x,c), batch [B], event [D], for x [B, *shape] and labels y."""
        return self.posterior(self.features(x, self.conditioning(y)))

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """Return p(x|z,c), batch [..., B], event `shape`, for z [..., B, D] and labels y [B]."""
        return self._decode(z, self.conditioning(y))

    def decode_under(self, z: Tensor, c: Tensor | None) -> Distribution:
        """Return p(x|z,c) for z [B, D] and conditions c [B, C] themselves, which need not be those of any label."""
        return self._decode(z, c)

    def forward(self, x: Tensor, y: Tensor | None = None, samples: int = 1) -> Output:
        """Return the terms of the ELBO of x [B, *shape] with K = `samples` draws of z for each example."""
        c = self.conditioning(y)
        features = self.features(x, c)
        posterior, prior = self.posterior(features), self.prior(c)
        z = posterior.rsample((samples,))
        log_likelihood = self._decode(z, c).log_prob(x)
        if self.log_volume:
            log_likelihood = log_likelihood - self.log_volume
        kls = kl_by_layer(posterior, prior, z)
        layers = tuple((kl.shape[-1], dims) for kl, dims in zip(kls, self.layers(z.shape[-1]), strict=True))
        return Output(
            log_likelihood, torch.cat(kls, -1) if len(kls) > 1 else kls[0], layers, z, posterior, prior, features
        )

    def log_weights(self, x: Tensor, y: Tensor | None, samples: int, at_once: int) -> Tensor:
        """Return log w_k = log p(x|z_k,c) + log p(z_k|c) − log q(z_k|x,c) [K, B] of K = `samples` draws, nats.

        `at_once` draws are decoded at a time.
        """
        c = self.conditioning(y)
        posterior, prior = self.posterior(self.features(x, c)), self.prior(c)
        parts = []
        for start in range(0, samples, at_once):
            z = posterior.rsample((min(at_once, samples - start),))
            weights = prior.log_prob(z) - posterior.log_prob(z)
            parts.append(self._decode(z, c).log_prob(x) - self.log_volume + weights)
        return torch.cat(parts)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = True) -> Tensor:
        """Return means (or else draws) of p(x|z,c) [n, *shape] for n draws of z from the prior; y holds n labels."""
        c = self.conditioning(y)
        prior = self.prior(c)
        z = prior.sample((n,) if not prior.batch_shape else ())
        p = self._decode(z, c)
        return p.mean if mean else p.sample()

    def layers(self, latent_dim: int) -> tuple[int, ...]:
        """Return the dimensions of each stochastic layer, top first, for D in all."""
        return getattr(self.model, "layers", (latent_dim,))

    def features(self, x: Tensor, c: Tensor | None) -> Tensor:
        """Return the encoder's features [B, F] of x [B, *shape] and conditions c [B, C]."""
        return Encoder(self.model, self.posterior, self.likelihood).features(x, c)

    def _decode(self, z: Tensor, c: Tensor | None) -> Distribution:
        batch = z.shape[:-1]
        if c is not None and len(batch) > 1:
            c = c.expand(*batch, -1).flatten(0, -2)
        with autocast(self.model, z):
            outputs = self.model.decode(z.reshape(-1, z.shape[-1]), c).to(z.dtype)
        return self.likelihood(outputs.view(*batch, *outputs.shape[1:]), len(self.shape))


def kl_by_layer(q: Any, p: Any, z: Tensor) -> list[Tensor]:
    """Return KL(q ‖ p), nats, of each stochastic layer, top first, each [B, its columns]; z [K, B, D]."""
    return q.kl_by_layer(p, z) if hasattr(q, "kl_by_layer") else [kl_by_dimension(q, p, z)]


def autocast(model: Any, like: Tensor) -> AbstractContextManager[Any]:
    """Compute products in the model's type within the block."""
    if getattr(model, "products", torch.float32) == torch.float32:
        return nullcontext()
    return torch.autocast(like.device.type, dtype=torch.bfloat16)
