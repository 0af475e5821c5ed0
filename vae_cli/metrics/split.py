"""A model on the examples of one split: every number of `vae-eval` and of a finished run is defined here, once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from vae_cli.data import Resident, Spec
from vae_cli.metrics.aggregate import aggregate
from vae_cli.metrics.elbo import Evaluation, bits_per_dim, enough_draws, evaluate
from vae_cli.metrics.importance import LogLikelihood, log_likelihood, numbers
from vae_cli.metrics.meaning import worse_than_no_model
from vae_cli.vae import VAE


class SplitMetrics:
    """What a model is worth on some examples, in nats.

    Args:
        vae: in fp32.
        spec: of the data.
        split: train, valid or test.
        data: examples of that split.
        draws: of z for each example, at least; a small set takes more.
        seed: of every draw.
        batch_size: z decoded at a time; None for as many as a memory bound allows.
    """

    def __init__(
        self,
        vae: VAE,
        spec: Spec,
        split: str,
        data: Resident,
        *,
        draws: int,
        seed: int = 0,
        batch_size: int | None = None,
    ):
        self.vae, self.spec, self.split, self.data = vae, spec, split, data
        self.draws, self.seed, self.batch_size = draws, seed, batch_size

    @cached_property
    def evaluation(self) -> Evaluation:
        """The ELBO of the examples, computed once."""
        draws = enough_draws(self.vae, self.data, self.draws)
        return evaluate(self.vae, self.data, samples=draws, seed=self.seed, batch_size=self.batch_size)

    def elbo(self) -> dict[str, float]:
        """Return ELBO, its terms, the active units, and bits/dim where they mean something."""
        found = {key.partition("/")[2]: value for key, value in self.evaluation.scalars("").items()}
        return found | self._bits("bits_per_dim", self.evaluation.elbo)

    def log_likelihood(
        self,
        samples: int,
        examples: int | None = None,
        *,
        compiled: bool = False,
        advance: Callable[[int], None] = lambda done: None,
    ) -> tuple[LogLikelihood, dict[str, float]]:
        """Return the estimates of log p(x) and their mean with its error, from K = `samples` draws for each example.

        Args:
            samples: K.
            examples: how many examples are sampled; None for all. The ELBO of all corrects the mean of a part.
            compiled: whether torch.compile fuses the draws.
            advance: is told the examples done.
        """
        estimate = log_likelihood(
            self.vae,
            self.data if examples is None else self.data.part(examples),
            samples=samples,
            seed=self.seed,
            batch_size=self.batch_size,
            compiled=compiled,
            advance=advance,
        )
        return estimate, numbers(estimate, self.evaluation, len(self.data))

    def bits_of(self, estimate: LogLikelihood) -> dict[str, float]:
        """Return log p(x) in bits/dim, where they mean something."""
        return self._bits("log_likelihood_bits_per_dim", estimate.mean)

    def aggregate(self) -> dict[str, float]:
        """Return what the aggregate posterior q(z) says: mutual information and KL(q(z) ‖ p(z))."""
        return aggregate(self.vae, self.data, seed=self.seed)

    def worse_than_no_model(self) -> str | None:
        """Return a warning where the ELBO is below what the elements give one by one."""
        return worse_than_no_model(self.evaluation, self.split, self.spec, self.vae.likelihood, self.data)

    def named(self, found: dict[str, float]) -> dict[str, float]:
        """Return numbers under `split/…`."""
        return {f"{self.split}/{key}": value for key, value in found.items()}

    def _bits(self, name: str, nats: float) -> dict[str, float]:
        bits = bits_per_dim(nats, self.spec, self.vae.likelihood, self.data.observed)
        return {} if bits is None else {name: bits}
