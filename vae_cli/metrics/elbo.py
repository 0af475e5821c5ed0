"""The ELBO over a whole set: each example weighs once, the short last batch included."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.data import Resident, Spec
from vae_cli.distribution import exact
from vae_cli.system import parallel, randomness
from vae_cli.vae import VAE

OUTPUTS = 2**22  # decoder outputs at once in an evaluation
DRAWS = 4000  # draws of z, over all examples, that a validation takes at least
ELEMENTS = 2**24  # elements of x that such draws decode to at most: 64×64 pixels for each; large pictures take fewer
ACTIVE = 0.01  # Var_x(E_q[z_u]) above which a unit is active (Burda et al. 2016)


@dataclass
class Evaluation:
    """The ELBO of a set and its terms, KL weight 1 and no free bits, nats for one example."""

    elbo: float
    reconstruction: float
    kl: float
    active_units: int
    kl_by_dimension: Tensor  # [C], a column for each dimension, or one for a layer whose dimensions depend
    layers: tuple[tuple[int, int], ...]  # of each stochastic layer, top first: its columns, its dimensions
    elbo_stderr: float  # over examples

    @property
    def units(self) -> int:
        """The number of latent dimensions."""
        return sum(dims for _, dims in self.layers)

    @property
    def kl_by_layer(self) -> dict[str, float]:
        """The KL of each stochastic layer, counted from the data up, where there are several."""
        parts = self.kl_by_dimension.split([columns for columns, _ in self.layers])
        named = {f"kl_layer_{len(parts) - k}": float(part.sum()) for k, part in enumerate(parts)}
        return dict(reversed(named.items())) if len(parts) > 1 else {}

    def scalars(self, split: str) -> dict[str, float]:
        """Return the scalars under `split/…`."""
        values = {name: getattr(self, name) for name in ("elbo", "reconstruction", "kl", "active_units")}
        return {f"{split}/{name}": value for name, value in (values | self.kl_by_layer).items()}


@contextmanager
def evaluation_mode(vae: VAE, seed: int = 0) -> Iterator[None]:
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
    rows = batch_size or min(500, decodes_at_once(vae))
    at_once = min(samples, rows)
    sums: list[Tensor] | None = None
    layers: tuple[tuple[int, int], ...] = ()
    with evaluation_mode(vae, seed):
        for k, batch in enumerate(data.batches(max(1, rows // samples))):
            if k % parallel.count() != parallel.rank():
                continue
            randomness.reseed(randomness.mixed(seed, k), batch.x.device)  # of the batch's own, whichever rank has it
            part, layers = _sums(vae, batch, samples, at_once)
            sums = part if sums is None else [a + b for a, b in zip(sums, part, strict=True)]
    sums, layers = _of_all(sums, layers)
    reconstruction, kl, mean, again, square, elbo_square = ((value / len(data)).cpu() for value in sums)
    correction = len(data) / max(1, len(data) - 1)
    variance = (square - mean * again) * correction
    spread = (elbo_square - (reconstruction - kl.sum()) ** 2).clamp(min=0.0) * correction
    return Evaluation(
        elbo=float(reconstruction - kl.sum()),
        reconstruction=float(reconstruction),
        kl=float(kl.sum()),
        active_units=int((vae.latent.by_unit(variance) > ACTIVE).sum()),
        kl_by_dimension=kl,
        layers=layers,
        elbo_stderr=float((spread / len(data)).sqrt()) if len(data) > 1 else math.nan,
    )


def enough_draws(vae: VAE, data: Resident, least: int = 1) -> int:
    """Return how many draws of z for each example make the mean ELBO of a set a number to compare by.

    One draw for each of a few examples is off by a constant, since every validation has the same seed: of 180 examples
    by up to 0.4 nats. Large sets take `least` draws.
    """
    wanted = min(DRAWS, ELEMENTS // math.prod(vae.shape))
    return max(least, math.ceil(wanted / len(data)))


def _of_all(
    sums: list[Tensor] | None, layers: tuple[tuple[int, int], ...]
) -> tuple[list[Tensor], tuple[tuple[int, int], ...]]:
    """Return the sums over the batches of all ranks, some of which may have had none."""
    if parallel.count() == 1:
        assert sums is not None
        return sums, layers
    found = parallel.from_all_ranks((sums and [each.cpu() for each in sums], layers))
    there = [each for each in found if each[0] is not None]
    return [sum(parts) for parts in zip(*(each[0] for each in there), strict=True)], there[0][1]


def decodes_at_once(vae: VAE) -> int:
    """Return how many z can be decoded at once within the memory bound."""
    return max(1, OUTPUTS // (math.prod(vae.shape) * vae.likelihood.outputs))


def _sums(vae: VAE, batch: Batch, samples: int, at_once: int) -> tuple[list[Tensor], tuple[tuple[int, int], ...]]:
    """Return sums over a batch, and the layers of the KL; at most `at_once` draws of z are decoded at a time.

    The sums are, in float64: log p(x|z) [], KL [C], posterior means [D], twice, and their products [D], squared ELBOs
    []. Where a mean is Monte Carlo, two independent ones keep its noise out of its variance over examples.
    """
    double = exact(batch.x.device)
    reconstruction, kl = torch.zeros((), dtype=double), torch.zeros((), dtype=double)
    for start in range(0, samples, at_once):
        draws = min(at_once, samples - start)
        output = vae(batch, draws)
        reconstruction = reconstruction + output.log_likelihood.to(double).sum(0) / samples
        kl = kl + output.kl.to(double) * (draws / samples)
    mean, again = output.draw.q.mean.to(double), output.draw.q.mean.to(double)  # two estimates where MC
    terms = reconstruction, kl, mean, again, mean * again, (reconstruction - kl.sum(-1)) ** 2
    return [term.sum(0) for term in terms], output.draw.layers


def bits_per_dim(elbo: float, spec: Spec, likelihood: Any, observed: float | None = None) -> float | None:
    """Return −ELBO in bits for each observed element, or None where that means nothing: see `Support.bits_per_dim`."""
    return likelihood.support.bits_per_dim(elbo, spec, observed)
