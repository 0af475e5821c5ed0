"""Numbers over a whole set: each example weighs once, the short last batch included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_cli import randomness
from vae_cli.data import Resident, Spec
from vae_cli.vae import VAE

OUTPUTS = 2**22  # decoder outputs at once in an evaluation
ACTIVE = 0.01  # Var_x(E_q[z_u]) above which a unit is active (Burda et al. 2016)


@dataclass
class Evaluation:
    """The ELBO of a set and its terms, KL weight 1 and no free bits, nats for one example."""

    elbo: float
    reconstruction: float
    kl: float
    active_units: int
    kl_by_dimension: Tensor  # [D], or [1] where dimensions are not independent

    def scalars(self, split: str) -> dict[str, float]:
        """Return the scalars under `split/…`."""
        names = ("elbo", "reconstruction", "kl", "active_units")
        return {f"{split}/{name}": getattr(self, name) for name in names}


@contextmanager
def undisturbed(vae: VAE, seed: int = 0) -> Iterator[None]:
    """Look at a model in evaluation mode under a seed of its own; leave its mode and all random states as they were."""
    was_training = vae.training
    with randomness.fork(seed, next(vae.parameters()).device):
        vae.eval()
        try:
            yield
        finally:
            vae.train(was_training)


@torch.no_grad()
def evaluate(vae: VAE, data: Resident, *, samples: int = 1, seed: int = 0, batch_size: int | None = None) -> Evaluation:
    """Evaluate every example of a set once, with `samples` draws of z each, from a seed of its own.

    The random state of training is left as it was, and the model in the mode it was in. `batch_size` counts decoded
    examples, draws of z included; by default as many as keep the decoder's outputs within a memory bound.
    """
    size = data.examples.x[0].numel() * vae.likelihood.outputs
    rows = batch_size or max(1, min(1000, OUTPUTS // size))
    sums = None
    with undisturbed(vae, seed):
        for x, y in data.batches(max(1, rows // samples)):
            part = _sums(vae, x, y, samples)
            sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
    assert sums is not None
    reconstruction, kl, mean, square = ((value / len(data)).cpu() for value in sums)
    variance = (square - mean**2) * len(data) / max(1, len(data) - 1)
    return Evaluation(
        elbo=float(reconstruction - kl.sum()),
        reconstruction=float(reconstruction),
        kl=float(kl.sum()),
        active_units=int((variance > ACTIVE).sum()),
        kl_by_dimension=kl,
    )


def _sums(vae: VAE, x: Tensor, y: Tensor | None, samples: int) -> list[Tensor]:
    """Return sums over a batch in float64: log p(x|z) [], KL [D], posterior means [D] and their squares [D]."""
    output = vae(x, y, samples)
    exact = torch.float32 if x.device.type == "mps" else torch.float64  # MPS has no float64
    mean = output.posterior.mean.to(exact)
    terms = output.log_likelihood.to(exact).mean(0), output.kl.to(exact), mean, mean**2
    return [term.sum(0) for term in terms]


def bits_per_dim(elbo: float, spec: Spec, likelihood: Any) -> float | None:
    """Return −ELBO in bits for each element, or None where that means nothing.

    It means something for a mass over the very values of the data (a Bernoulli on grey levels is none), and for the
    density of dequantised grey levels, where each level's cell has width 1/L: −ELBO / (D ln 2) + log2 L.
    """
    bits, discrete = -elbo / (spec.size * math.log(2.0)), getattr(likelihood, "discrete", False)
    if discrete and (spec.binary or (spec.levels is not None and likelihood.support == "levels")):
        return bits
    return bits + math.log2(spec.dequantized) if spec.dequantized and not discrete else None
