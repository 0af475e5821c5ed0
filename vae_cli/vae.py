"""The VAE: encode, draw, decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.batch import Batch
from vae_cli.latent import Draw, Encoder
from vae_cli.likelihood import log_prob
from vae_cli.model.layers import autocast
from vae_cli.system.errors import UserError


@dataclass
class Output:
    """The terms of one forward pass, in nats."""

    log_likelihood: Tensor  # [K, B] log p(x|z_k, c), of what is known of x
    draw: Draw
    batch: Batch

    @property
    def z(self) -> Tensor:
        """[K, B, D]."""
        return self.draw.z

    @property
    def kl(self) -> Tensor:
        """[B, columns] KL(q(z|x,c) ‖ p(z|c))."""
        return self.draw.kl


class VAE(nn.Module):
    """p(x|c) = ∫ p(x|z,c) p(z|c) dz with the approximate posterior q(z|x,c).

    Args:
        model: encoder and decoder (`vae_cli.model`).
        latent: what z is; owns posterior and prior (`vae_cli.latent`).
        likelihood: decoder outputs → p(x|z,c).
        conditioning: labels → condition.
        shape: of one example.
        log_std: log of what each element of standardised data was divided by [D]; empty where they were not. log p(x)
            is then that of the data's own values.
        missing: whether the encoder is shown which elements of x are known.

    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose("model.latent_dim=3"), Spec((4,), 2, 0.0, 1.0))  # four binary elements
    >>> output = vae(Batch(torch.ones(5, 4)), samples=2)
    >>> output.log_likelihood.shape, output.z.shape, output.kl.shape
    (torch.Size([2, 5]), torch.Size([2, 5, 3]), torch.Size([5, 3]))
    """

    log_std: Tensor | None

    def __init__(
        self,
        *,
        model: Any,
        latent: Any,
        likelihood: Any,
        conditioning: nn.Module,
        shape: tuple[int, ...],
        log_std: Sequence[float] = (),
        missing: bool = False,
    ):
        super().__init__()
        self.model: Any
        self.latent: Any
        self.likelihood: Any
        self.model, self.latent = model, latent
        self.likelihood, self.conditioning, self.shape = likelihood, conditioning, tuple(shape)
        self.log_volume, self.missing = sum(log_std), missing
        own = torch.tensor(log_std).view(self.shape) if log_std else None
        self.register_buffer("log_std", own, persistent=False)
        self.encoder = Encoder(model, likelihood.shown, latent)

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
    def latent_dim(self) -> int:
        """D, the number of elements of a (flat) code."""
        return self.latent.layout.size

    @property
    def wants_examples(self) -> bool:
        """Whether a part starts from training examples."""
        return hasattr(self.latent.prior, "initialize") or getattr(self.model, "bias_from_data", False)

    @torch.no_grad()
    def initialize(self, batch: Batch) -> None:
        """Let the parts that want to start from training examples do so."""
        if hasattr(self.latent.prior, "initialize"):
            self.latent.prior.initialize(batch.filled, self.conditioning(batch.y))
        if getattr(self.model, "bias_from_data", False):
            if not hasattr(self.likelihood, "outputs_for"):
                raise UserError("model.bias_from_data=true: no effect with this likelihood; bernoulli is allowed")
            self.model.readout.bias.copy_(self.likelihood.outputs_for(batch.filled.mean(0)).flatten())

    def encode(self, batch: Batch) -> Distribution:
        """Return q(z|x,c), batch [B], event [D]."""
        return self.latent.q(self.parameters_of(batch))

    def code_of(self, batch: Batch) -> Tensor:
        """Return the code [B, D] that stands for each example."""
        return self.latent.code_of(self.encode(batch))

    def parameters_of(self, batch: Batch) -> Tensor:
        """Return the parameters [B, P] of q(z|x,c)."""
        return self.encoder.parameters(batch.x, self.conditioning(batch.y), batch.known)

    def decode(self, z: Tensor, y: Tensor | None = None) -> Distribution:
        """Return p(x|z,c), batch [..., B], event `shape`, for z [..., B, D] and labels y [B]."""
        return self.decode_given(z, self.conditioning(y))

    def prior(self, y: Tensor | None = None) -> Distribution:
        """Return p(z|c), batch [] or [B], event [D], for labels y [B]."""
        return self.latent.p(self.conditioning(y))

    def forward(self, batch: Batch, samples: int = 1) -> Output:
        """Return the terms of the ELBO of a batch, with K = `samples` draws of z for each example."""
        c, parameters = self.conditioning(batch.y), self.parameters_of(batch)
        q, p = self.latent.q(parameters), self.latent.p(c)
        z = q.rsample((samples,))
        log_likelihood = self.log_prob(self.decode_given(z, c), batch)
        return Output(log_likelihood, self.latent.weigh(z, q, p, parameters), batch)

    def log_prob(self, p: Distribution, batch: Batch) -> Tensor:
        """Return log p(x|z,c) [..., B] of what is known of x, in the data's own units, nats."""
        found = log_prob(p, batch.x, batch.known)
        if self.log_std is None:
            return found
        if batch.known is None:
            return found - self.log_volume
        return found - (batch.known * self.log_std).flatten(1).sum(-1)

    def log_weights(self, batch: Batch, samples: int, at_once: int) -> Tensor:
        """Return log w_k = log p(x|z_k,c) + log p(z_k|c) − log q(z_k|x,c) [K, B] of K = `samples` draws, nats.

        `at_once` draws are decoded at a time.
        """
        c = self.conditioning(batch.y)
        q, p = self.latent.q(self.parameters_of(batch)), self.latent.p(c)
        parts = []
        for start in range(0, samples, at_once):
            z = q.rsample((min(at_once, samples - start),))
            parts.append(self.log_prob(self.decode_given(z, c), batch) + (p.log_prob(z) - q.log_prob(z)))
        return torch.cat(parts)

    @torch.no_grad()
    def sample(self, n: int, y: Tensor | None = None, *, mean: bool = True) -> Tensor:
        """Return what is shown of p(x|z,c) (or else draws) [n, *shape] for n draws of z of the prior; y: n labels."""
        c = self.conditioning(y)
        p = self.decode_given(self.latent.generate(n, c), c)
        return self.likelihood.picture(p) if mean else p.sample()

    def decode_given(self, z: Tensor, c: Tensor | None) -> Distribution:
        """Return p(x|z,c), batch [..., B], event `shape`, for z [..., B, D] and conditions c [B, C]."""
        batch, each = z.shape[:-1], c
        if c is not None and len(batch) > 1:
            each = c.expand(*batch, -1).flatten(0, -2)
        with autocast(self.model, z):
            outputs = self.model.decode(self.latent.decoded(z).reshape(-1, self.model.latent_size), each).to(z.dtype)
        return self.likelihood(outputs.view(*batch, *outputs.shape[1:]), len(self.shape), c)
