"""How much the final numbers of a run may cost: no more than its training did."""

from __future__ import annotations

from dataclasses import dataclass

from vae_cli.config.run import Trainer as TrainerSettings
from vae_cli.data import Dataset

EVALUATED = 10_000  # training examples at most that the final numbers are computed on
FEW_EVALUATED = 1000  # of them, where more would take too long
FEW_WEIGHED = 10  # examples that log p(x) is computed of, where more would take too long
ALWAYS = 2**28  # elements of p(x|z) that the final ELBOs, and again log p(x), may decode however short training was


@dataclass(frozen=True)
class Effort:
    """What the final numbers are computed from.

    Attributes:
        draws: of z for each example.
        train: training examples.
        weighed: examples of log p(x); None for all.
    """

    draws: int
    train: int
    weighed: int | None

    def spared(self, settings: TrainerSettings, dataset: Dataset) -> str:
        """Say what is less than the settings ask for; an empty text where nothing is."""
        most, spared = settings.log_likelihood_examples, []
        if self.draws < settings.final_samples:
            spared.append(f"{self.draws} draw{'s' if self.draws > 1 else ''} of z (trainer.final_samples)")
        if self.train < min(EVALUATED, len(dataset.train)):
            spared.append(f"{self.train:,} training examples")
        if self.weighed is not None and most is not None and self.weighed < min(most, dataset.most_held_out):
            spared.append(f"{self.weighed} examples of log p(x) (trainer.log_likelihood_examples)")
        return f"the final numbers rest on {', '.join(spared)}: more would take longer than training" if spared else ""


def affordable(settings: TrainerSettings, dataset: Dataset, trained: int) -> Effort:
    """Bound what the final numbers cost: they decode as often as training does at most, for ELBOs and for log p(x).

    The bound counts decodings, not seconds, so that the same settings always give the same numbers.

    Args:
        settings: say what is wanted.
        dataset: the data.
        trained: examples that training decodes, steps times batch size.
    """
    decodes = max(ALWAYS // dataset.spec.size, trained)
    held_out = sum(n for split, n in dataset.sizes.items() if split != "train")
    train = min(EVALUATED, len(dataset.train))
    draws = max(1, min(settings.final_samples, decodes // (train + held_out)))
    if draws == 1:
        train = min(train, max(FEW_EVALUATED, decodes - held_out))
    weighed = settings.log_likelihood_examples
    if weighed is not None:
        weighed = min(weighed, max(FEW_WEIGHED, decodes // max(1, settings.log_likelihood_samples)))
    return Effort(draws, train, weighed)
