"""Schedules: pure functions of the epoch (a float: steps / steps per epoch). No torch.

A KL schedule answers `weight(epoch)`, the factor of the KL term, and `target(epoch)`, the KL in nats that the
term pulls towards, or None where less is simply better. A learning-rate schedule answers `factor(epoch)`, which
multiplies optimizer.lr.
"""

from __future__ import annotations

import math
from typing import Any


def _clip(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _progress(epoch: float, duration: float) -> float:
    return _clip(epoch / duration) if duration > 0 else 1.0


def _whole(value: float) -> int:
    """Return how often a period has passed; 0.3 / 0.1 = 2.999… is 3 times."""
    return math.floor(value + 1e-9)


class Constant:
    """weight(t) = β. The base of the other schedules, which override `ramp`."""

    def __init__(self, *, weight: float = 1.0, free_bits: float = 0.0):
        self.final_weight, self.free_bits = weight, free_bits

    def ramp(self, epoch: float) -> float:
        """Return the fraction of the final weight in force, in [0, 1]."""
        return 1.0

    def weight(self, epoch: float) -> float:
        """Return the weight of the KL term."""
        return self.final_weight * self.ramp(epoch)

    def target(self, epoch: float) -> float | None:
        """Return the KL to pull towards in nats, or None."""
        return None

    @property
    def settled(self) -> float:
        """The epoch from which the schedule no longer changes."""
        return 0.0


class Linear(Constant):
    """weight(t) = β · min(1, t / warmup)."""

    def __init__(self, *, warmup: float, weight: float = 1.0, free_bits: float = 0.0):
        super().__init__(weight=weight, free_bits=free_bits)
        self.warmup = warmup

    def ramp(self, epoch: float) -> float:
        """Return t / warmup, at most 1."""
        return _progress(epoch, self.warmup)

    @property
    def settled(self) -> float:
        """The end of the warm-up."""
        return self.warmup


class Cosine(Linear):
    """weight(t) = β · (1 − cos(π · min(1, t / warmup))) / 2."""

    def ramp(self, epoch: float) -> float:
        """Return half a cosine from 0 to 1."""
        return (1.0 - math.cos(math.pi * _progress(epoch, self.warmup))) / 2.0


class Sigmoid(Linear):
    """A logistic curve through (0, 0), (warmup/2, β/2) and (warmup, β) (after Bowman et al. 2016)."""

    def __init__(self, *, warmup: float, steepness: float = 12.0, weight: float = 1.0, free_bits: float = 0.0):
        super().__init__(warmup=warmup, weight=weight, free_bits=free_bits)
        self.steepness = steepness

    def ramp(self, epoch: float) -> float:
        """Return the logistic curve, rescaled so that it runs from 0 to 1 exactly."""
        half = self.steepness / 2.0
        s = math.tanh(half * (_progress(epoch, self.warmup) - 0.5))  # σ(2a) = (1 + tanh a) / 2
        return _clip((s / math.tanh(half / 2.0) + 1.0) / 2.0)


class Cyclical(Constant):
    """Each cycle rises linearly over its first `ratio`, then stays at β (Fu et al. 2019, eq. 6)."""

    def __init__(
        self,
        *,
        period: float,
        ratio: float = 0.5,
        cycles: int = 4,
        weight: float = 1.0,
        free_bits: float = 0.0,
    ):
        super().__init__(weight=weight, free_bits=free_bits)
        self.period, self.ratio, self.cycles = period, ratio, cycles

    def ramp(self, epoch: float) -> float:
        """Return the position within the cycle divided by the rising part, at most 1."""
        cycles = epoch / self.period
        return 1.0 if _whole(cycles) >= self.cycles else _progress(cycles - _whole(cycles), self.ratio)

    @property
    def settled(self) -> float:
        """The end of the last cycle."""
        return self.period * self.cycles


class Capacity(Linear):
    """γ · |KL − C(t)|, C(t) = capacity · min(1, t / warmup) (Burgess et al. 2018, eq. 8)."""

    def __init__(self, *, capacity: float, warmup: float, weight: float, free_bits: float = 0.0):
        super().__init__(warmup=warmup, weight=weight, free_bits=free_bits)
        self.capacity = capacity

    def weight(self, epoch: float) -> float:
        """Return γ, which does not change."""
        return self.final_weight

    def target(self, epoch: float) -> float | None:
        """Return C(t) in nats."""
        return self.capacity * self.ramp(epoch)


class ConstantLR:
    """factor(t) = 1. The base of the other learning-rate schedules."""

    def __init__(self, *, epochs: float = 0.0):
        self.epochs = epochs  # length of the run

    def factor(self, epoch: float) -> float:
        """Return what multiplies optimizer.lr."""
        return 1.0

    def observe(self, score: float) -> None:
        """Take note of a validation: of valid/elbo, or valid/bound where the objective has a tighter one."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""


class WarmupLR(ConstantLR):
    """factor(t) = min(1, t / warmup)."""

    def __init__(self, *, warmup: float, epochs: float = 0.0):
        super().__init__(epochs=epochs)
        self.warmup = warmup

    def factor(self, epoch: float) -> float:
        """Return a linear rise, then 1."""
        return _progress(epoch, self.warmup)


class CosineLR(WarmupLR):
    """After the warm-up: final + (1 − final) · (1 + cos(π · progress)) / 2 (Loshchilov & Hutter 2017, eq. 5)."""

    def __init__(self, *, final: float = 0.0, warmup: float = 0.0, epochs: float = 0.0):
        super().__init__(warmup=warmup, epochs=epochs)
        self.final = final

    def factor(self, epoch: float) -> float:
        """Return the rise, then half a cosine over the rest of the run."""
        if epoch < self.warmup:
            return super().factor(epoch)
        progress = _progress(epoch - self.warmup, self.epochs - self.warmup)
        return self.final + (1.0 - self.final) * (1.0 + math.cos(math.pi * progress)) / 2.0


class StepLR(ConstantLR):
    """factor(t) = factor ** floor(t / every)."""

    def __init__(self, *, every: float, factor: float = 0.1, epochs: float = 0.0):
        super().__init__(epochs=epochs)
        self.every, self.fall = every, factor

    def factor(self, epoch: float) -> float:
        """Return the staircase."""
        return self.fall ** _whole(epoch / self.every)


class StagesLR(ConstantLR):
    """Stages of growing length, each at a lower rate: stage i = 0 … n − 1 takes growth^i parts of the run.

    factor(t) = final^(i / (n − 1)). With growth 3 and 8 stages, the schedule of Burda et al. 2016 (3,280 epochs there).
    """

    def __init__(self, *, stages: int = 8, growth: float = 3.0, final: float = 0.1, epochs: float = 0.0):
        super().__init__(epochs=epochs)
        self.final = final
        lengths = [growth**i for i in range(stages)]
        self.ends = [sum(lengths[: i + 1]) / sum(lengths) for i in range(stages)]

    def factor(self, epoch: float) -> float:
        """Return the staircase."""
        progress = _progress(epoch, self.epochs)
        stage = next((i for i, end in enumerate(self.ends) if progress < end), len(self.ends) - 1)
        return self.final ** (stage / max(1, len(self.ends) - 1))


class PlateauLR(ConstantLR):
    """Multiplied by `factor` whenever `patience` validations in a row bring no better ELBO."""

    def __init__(self, *, patience: int = 5, factor: float = 0.5, min: float = 0.01, epochs: float = 0.0):
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
