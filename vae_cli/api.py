"""The Python interface to finished runs, for notebooks: `vae_cli.load` and `vae_cli.load_data`.

Everything takes and gives values in the data's own units: grey levels scaled to [0, 1] (binary ones 0 or 1), tables as
they were before standardising.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.distributions import Distribution

from vae_cli import finished, metrics
from vae_cli.batch import Batch
from vae_cli.config.run import Config
from vae_cli.data import Spec
from vae_cli.data.inputs import Inputs
from vae_cli.distribution import Rescaled, Shaped
from vae_cli.system.device import choose_device
from vae_cli.vae import VAE


def load(
    run: str | os.PathLike[str],
    *,
    device: str = "auto",
    trust: bool | Sequence[str] = False,
    data: finished.Places = None,
) -> Trained:
    """Return the model of a finished run, in evaluation mode, with the weights that its numbers come from.

    Args:
        run: the run folder.
        device: auto (CUDA, then MPS, then the CPU), cpu, cuda or mps.
        trust: whose parts may be built besides vae_cli's own: packages by name, or True for all. Their code would run.
        data: where the run's data are now, if they have moved.

    Raises:
        vae_cli.system.errors.UserError: there is no finished run there, or it names foreign parts.
    """
    found = finished.restore(Path(run), choose_device(device, "device"), trust=trust, data=data)
    return Trained(found, Path(run))


def load_data(
    run: str | os.PathLike[str],
    split: str = "test",
    *,
    data: finished.Places = None,
    trust: bool | Sequence[str] = False,
) -> tuple[Tensor, Tensor | None]:
    """Return a split of a run's own data as an evaluation sees it: x [N, *shape] float32, y [N], [N, A] or None.

    Args:
        run: the run folder.
        split: train, valid or test.
        data: where the data are now, if they have moved.
        trust: as for `load`.

    Raises:
        vae_cli.system.errors.UserError: there is no run there, its data are not what they were, or have no such split.
    """
    return load(run, device="cpu", trust=trust, data=data).data(split)


class Trained:
    """A trained VAE. x are tensors or numpy arrays [B, *shape] in the data's own range.

    y are labels, one for all examples or one each: classes by number or name, or attributes [A] or [B, A].

    Attributes:
        vae: the module itself, which works in the units it was trained in.
        spec: what the data are.
        config: the run's settings.
        folder: of the run.
    """

    def __init__(self, run: finished.Restored, folder: Path):
        self.run, self.folder = run, folder
        self.vae: VAE = run.vae
        self.spec: Spec = run.spec
        self.config: Config = run.config
        self.inputs = Inputs(
            run.spec, self.code_shape, conditional=self.vae.conditional, device=next(run.vae.parameters()).device
        )

    def data(self, split: str = "test") -> tuple[Tensor, Tensor | None]:
        """Return a split of the run's own data, on the CPU: see `load_data`."""
        dataset = finished.data_of(self.run, self.folder)
        examples = finished.split_of(dataset, split, torch.device("cpu"), self.config.data.seed)
        batch = examples.batch(slice(0, len(examples)))
        return self.spec.restore(batch.gapped), batch.y

    @property
    def conditional(self) -> bool:
        """Whether the model needs labels."""
        return self.vae.conditional

    @property
    def discrete(self) -> bool:
        """Whether codes are classes."""
        return "discrete" in self.vae.latent.gives

    @property
    def bounded(self) -> bool:
        """Whether the data's own values are in [0, 1]."""
        return self.inputs.bounded

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.inputs.device

    @torch.no_grad()
    def encode(self, x: ArrayLike | Tensor, y: Any = None) -> Distribution:
        """Return q(z|x,c): batch [B], event `code_shape`."""
        return self._shaped(self.posterior(x, y))

    @torch.no_grad()
    def posterior(self, x: ArrayLike | Tensor, y: Any = None) -> Distribution:
        """Return q(z|x,c) of flat codes: batch [B], event [D]."""
        return self.vae.encode(self.inputs.batch(x, y))

    def code_of(self, x: ArrayLike | Tensor, y: Any = None) -> Tensor:
        """Return the flat code [B, D] that stands for each example: the mean of q, or of classes the likeliest."""
        return self.vae.latent.code_of(self.posterior(x, y))

    @torch.no_grad()
    def decode(self, z: ArrayLike | Tensor, y: Any = None) -> Distribution:
        """Return p(x|z,c) for z [..., *code_shape] or flat [..., D]: batch [...], event `shape`, in the data's units.

        Args:
            z: codes; flat ones are one [D], several [B, D], K draws of each [K, B, D].
            y: one label for all, or B.
        """
        z = self.inputs.codes(z)
        return self.rescaled(self.vae.decode(z, self.inputs.labels(y, z.shape[-2] if z.ndim > 1 else 1)))

    @torch.no_grad()
    def sample(self, n: int, y: Any = None, *, temperature: float = 1.0, mean: bool = True) -> Tensor:
        """Return [n, *shape]: means (or draws) of p(x|z,c) for n draws of z from the prior.

        Where p(x|z,c) has no mean in closed form (likelihood=autoregressive), draws stand in its place.

        Args:
            n: how many.
            y: one label for all, or one each; a conditional model needs it.
            temperature: draws of the prior are moved towards its mean by this factor, where it is below one.
            mean: False draws x from p(x|z,c).
        """
        if y is not None and not self.conditional:
            raise ValueError(f"y={y}: has no effect, this model is not conditional")
        p = self.rescaled(self.vae.decode(*self._prior(n, y, temperature)))
        return self.picture(p) if mean else p.sample()

    def picture(self, p: Distribution) -> Tensor:
        """Return what a person is shown of p(x|z,c): its mean, or a draw where that has no closed form."""
        return self.vae.likelihood.picture(p)

    @torch.no_grad()
    def prior(self, y: Any = None) -> Distribution:
        """Return p(z|c), event `code_shape`: batch [B] where each label has its own (prior=conditional), else batch [].

        Args:
            y: labels, for a conditional model: one (B is 1), or B.
        """
        if y is not None and not self.conditional:
            raise ValueError(f"y={y}: has no effect, this model is not conditional")
        return self._shaped(self.vae.prior(self.inputs.labels(y, self.inputs.count(y))))

    def prior_sample(self, n: int, y: Any = None, *, temperature: float = 1.0) -> Tensor:
        """Return n draws of z from the prior, flat: [n, D]."""
        with torch.no_grad():
            return self._prior(n, y, temperature)[0]

    @torch.no_grad()
    def elbo(self, x: ArrayLike | Tensor, y: Any = None, *, samples: int = 1) -> Tensor:
        """Return the ELBO of each example [B], nats, from so many draws of z each; KL weight 1, no free bits."""

        def terms(batch: Batch) -> Tensor:
            output = self.vae(batch, samples)
            return output.log_likelihood.mean(0) - output.kl.sum(-1)

        return self._in_batches(terms, x, y, samples)

    @torch.no_grad()
    def log_likelihood(self, x: ArrayLike | Tensor, y: Any = None, *, samples: int = 1000) -> Tensor:
        """Return log p(x|c) of each example [B], nats, by so many importance samples (Burda et al. 2016)."""
        rows = metrics.decodes_at_once(self.vae)

        def estimate(batch: Batch) -> Tensor:
            log_w = self.vae.log_weights(batch, samples, max(1, rows // len(batch.x)))
            return torch.logsumexp(log_w, 0) - np.log(samples)

        return self._in_batches(estimate, x, y, 1)

    def elbo_by_class(self, x: ArrayLike | Tensor, *, samples: int = 1) -> Tensor:
        """Return the ELBO of each example under each class [B, classes], nats: what x is worth whose label is unknown.

        The largest tells the class that the model thinks of; logsumexp(-1) − log(classes) is a bound on log p(x) with
        every class equally likely.
        """
        return self._by_class(partial(self.elbo, x, samples=samples))

    def log_likelihood_by_class(self, x: ArrayLike | Tensor, *, samples: int = 1000) -> Tensor:
        """Return log p(x|c) of each example under each class [B, classes], nats.

        logsumexp(-1) − log(classes) is log p(x) with every class equally likely.
        """
        return self._by_class(partial(self.log_likelihood, x, samples=samples))

    def _by_class(self, score: Callable[[int], Tensor]) -> Tensor:
        if not self.conditional or self.spec.classes is None:
            raise ValueError("this model is not conditional on classes: it has no score for each of them")
        return torch.stack([score(k) for k in range(self.spec.classes)], -1)

    @torch.no_grad()
    def kl_by_dimension(self, x: ArrayLike | Tensor, y: Any = None) -> Tensor | None:
        """Return KL(q(z|x) ‖ p(z)) of each latent dimension [D], nats, the mean over examples; None if not known so.

        Of codes of classes it is that of each latent.
        """
        kl = self.vae(self.inputs.batch(x, y)).kl.mean(0)
        return kl if len(kl) == sum(self.vae.latent.units) else None

    @property
    def latent_dim(self) -> int:
        """D, the number of elements of z."""
        return self.vae.latent_dim

    @property
    def code_shape(self) -> tuple[int, ...]:
        """The shape of one code: [D]; [C, h, w] on a grid; [D, K] of D latents of K classes."""
        return self.vae.latent.layout.shape

    def _shaped(self, flat: Distribution) -> Distribution:
        return Shaped(flat, self.code_shape) if len(self.code_shape) > 1 else flat

    def _prior(self, n: int, y: Any, temperature: float) -> tuple[Tensor, Tensor | None]:
        if temperature < 0.0:
            raise ValueError(f"temperature={temperature}: at least 0 is allowed")
        if temperature != 1.0 and self.discrete:
            raise ValueError(f"temperature={temperature}: codes of classes cannot be moved to their mean; 1 is allowed")
        labels = self.inputs.labels(y, n)
        prior = self.vae.prior(labels)
        shape = () if prior.batch_shape else (n,)
        z = prior.sample(shape)
        if temperature != 1.0:
            centre = _mean(prior)
            z = centre + temperature * (z - centre)
        return z, labels

    def _in_batches(self, f: Callable, x: ArrayLike | Tensor, y: Any, samples: int) -> Tensor:
        batch = self.inputs.batch(x, y)
        size = max(1, min(100, metrics.decodes_at_once(self.vae) // samples))
        return torch.cat([f(batch.rows(slice(start, start + size))) for start in range(0, len(batch.x), size)])

    def rescaled(self, p: Distribution) -> Distribution:
        """Return p(x|z) in the data's own units."""
        if self.spec.mean is None:
            return p
        mean, std = (self.inputs.tensor(v).view(self.vae.shape) for v in (self.spec.mean, self.spec.std or ()))
        return Rescaled(p, mean, std)


def _mean(prior: Distribution) -> Tensor:
    try:
        return prior.mean
    except NotImplementedError:
        return prior.sample((1000,)).mean(0)
