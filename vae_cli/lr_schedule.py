"""Learning-rate schedules: pure functions of the epoch (a float: steps / steps per epoch). No torch.

A schedule answers `factor(epoch)`, which multiplies optimizer.lr; `epochs` is the length of the run.
"""

from __future__ import annotations

import math
from typing import Any

from vae_cli.config.types import Count, Fraction, Growth, NonNegative, OpenFraction, Positive, PositiveFraction, Stages
from vae_cli.kl import progress, whole


class ConstantLR:
    """factor(t) = 1. The base of the other learning-rate schedules.

    >>> ConstantLR(epochs=50.0).factor(epoch=3.0)
    1.0
    """

    def __init__(self, *, epochs: float):
        self.epochs = epochs  # length of the run

    def factor(self, epoch: float) -> float:
        """Return what multiplies optimizer.lr."""
        return 1.0

    def observe(self, score: float) -> None:
        """Record a validation's score: valid/elbo, or valid/bound where the objective has a tighter bound."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


class WarmupLR(ConstantLR):
    """factor(t) = min(1, t / warmup).

    >>> schedule = WarmupLR(warmup=10.0, epochs=50.0)
    >>> [schedule.factor(epoch) for epoch in (0.0, 5.0, 20.0)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, *, warmup: NonNegative, epochs: float):
        super().__init__(epochs=epochs)
        self.warmup = warmup

    def factor(self, epoch: float) -> float:
        """Return a linear rise, then 1."""
        return progress(epoch, self.warmup)


class CosineLR(WarmupLR):
    """After the warm-up: final + (1 − final) · (1 + cos(π · progress)) / 2 (Loshchilov & Hutter 2017, eq. 5).

    >>> schedule = CosineLR(final=0.1, warmup=0.0, epochs=50.0)
    >>> [round(schedule.factor(epoch), 4) for epoch in (0.0, 25.0, 50.0)]
    [1.0, 0.55, 0.1]
    """

    def __init__(self, *, final: Fraction, warmup: NonNegative, epochs: float):
        super().__init__(warmup=warmup, epochs=epochs)
        self.final = final

    def factor(self, epoch: float) -> float:
        """Return the rise, then half a cosine over the rest of the run."""
        if epoch < self.warmup:
            return super().factor(epoch)
        done = progress(epoch - self.warmup, self.epochs - self.warmup)
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * done)) / 2.0


class StepLR(ConstantLR):
    """factor(t) = factor ** floor(t / every).

    >>> schedule = StepLR(every=10.0, factor=0.5, epochs=50.0)
    >>> [schedule.factor(epoch) for epoch in (0.0, 10.0, 25.0)]
    [1.0, 0.5, 0.25]
    """

    def __init__(self, *, every: Positive, factor: PositiveFraction, epochs: float):
        super().__init__(epochs=epochs)
        self.every, self.fall = every, factor

    def factor(self, epoch: float) -> float:
        """Return the staircase."""
        return self.fall ** whole(epoch / self.every)


class StagesLR(ConstantLR):
    """Stages of growing length, each at a lower rate: stage i = 0 … n − 1 takes growth^i parts of the run.

    factor(t) = final^(i / (n − 1)). With growth 3 and 8 stages, the schedule of Burda et al. 2016 (3,280 epochs there).

    >>> schedule = StagesLR(stages=3, growth=3.0, final=0.01, epochs=130.0)
    >>> [round(schedule.factor(epoch), 4) for epoch in (0.0, 10.0, 40.0)]  # stages of 10, 30 and 90 epochs
    [1.0, 0.1, 0.01]
    """

    def __init__(self, *, stages: Stages, growth: Growth, final: PositiveFraction, epochs: float):
        super().__init__(epochs=epochs)
        self.final = final
        lengths = [growth**i for i in range(stages)]
        self.ends = [sum(lengths[: i + 1]) / sum(lengths) for i in range(stages)]

    def factor(self, epoch: float) -> float:
        """Return the staircase."""
        done = progress(epoch, self.epochs)
        stage = next((i for i, end in enumerate(self.ends) if done < end), len(self.ends) - 1)
        return self.final ** (stage / max(1, len(self.ends) - 1))


class PlateauLR(ConstantLR):
    """Multiplied by `factor` whenever `patience` validations in a row bring no better ELBO.

    >>> schedule = PlateauLR(patience=2, factor=0.5, min=0.1, epochs=50.0)
    >>> for elbo in (-100.0, -101.0, -102.0):
    ...     schedule.observe(elbo)
    >>> schedule.factor(3.0)
    0.5
    """

    needs = {"validation": "goes by validations"}

    def __init__(self, *, patience: Count, factor: OpenFraction, min: Fraction, epochs: float):
        super().__init__(epochs=epochs)
        self.patience, self.fall, self.min = patience, factor, min
        self.best, self.waited, self.current = -math.inf, 0, 1.0

    def factor(self, epoch: float) -> float:
        """Return the factor that the validations so far have led to."""
        return self.current

    def observe(self, score: float) -> None:
        """Count a validation without a better score; fall when patience is over."""
        self.waited = 0 if score > self.best else self.waited + 1
        self.best = max(self.best, score)
        if self.waited >= self.patience:
            self.current, self.waited = max(self.current * self.fall, self.min), 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best score, the validations waited and the factor."""
        return {"best": self.best, "waited": self.waited, "current": self.current}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.best, self.waited, self.current = state["best"], state["waited"], state["current"]
