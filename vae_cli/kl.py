"""Schedules of the KL weight: pure functions of the epoch (a float: steps / steps per epoch). No torch.

A schedule answers `weight(epoch)`, the factor of the KL term, and `target(epoch)`, the KL in nats that the term pulls
towards, or None where the KL is only to be small.
"""

from __future__ import annotations

import math

from vae_cli.config.types import Count, Fraction, NonNegative, Positive


def clip(value: float) -> float:
    """Return the nearest value in [0, 1]."""
    return min(max(value, 0.0), 1.0)


def progress(epoch: float, duration: float) -> float:
    """Return the share of a duration that is over, at most 1."""
    return clip(epoch / duration) if duration > 0 else 1.0


def whole(value: float) -> int:
    """Return how often a period has passed; 0.3 / 0.1 = 2.999… is 3 times."""
    return math.floor(value + 1e-9)


class Constant:
    """weight(t) = β. The base of the other schedules, which override `ramp`.

    >>> Constant(weight=4.0, free_bits=0.0).weight(epoch=3.0)
    4.0
    """

    def __init__(self, *, weight: NonNegative, free_bits: NonNegative):
        self.final_weight, self.free_bits = weight, free_bits

    def ramp(self, epoch: float) -> float:
        """Return the current weight as a fraction of the final one, in [0, 1]."""
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
    """weight(t) = β · min(1, t / warmup).

    >>> schedule = Linear(warmup=10.0, weight=1.0, free_bits=0.0)
    >>> [schedule.weight(epoch) for epoch in (0.0, 5.0, 20.0)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, *, warmup: NonNegative, weight: NonNegative, free_bits: NonNegative):
        super().__init__(weight=weight, free_bits=free_bits)
        self.warmup = warmup

    def ramp(self, epoch: float) -> float:
        """Return t / warmup, at most 1."""
        return progress(epoch, self.warmup)

    @property
    def settled(self) -> float:
        """The end of the warm-up."""
        return self.warmup


class Cosine(Linear):
    """weight(t) = β · (1 − cos(π · min(1, t / warmup))) / 2.

    >>> schedule = Cosine(warmup=10.0, weight=1.0, free_bits=0.0)
    >>> [round(schedule.weight(epoch), 4) for epoch in (0.0, 2.5, 5.0, 20.0)]
    [0.0, 0.1464, 0.5, 1.0]
    """

    def ramp(self, epoch: float) -> float:
        """Return half a cosine from 0 to 1."""
        return (1.0 - math.cos(math.pi * progress(epoch, self.warmup))) / 2.0


class Sigmoid(Linear):
    """A logistic curve through (0, 0), (warmup/2, β/2) and (warmup, β) (after Bowman et al. 2016).

    >>> schedule = Sigmoid(warmup=10.0, steepness=12.0, weight=1.0, free_bits=0.0)
    >>> [round(schedule.weight(epoch), 4) for epoch in (0.0, 5.0, 10.0)]
    [0.0, 0.5, 1.0]
    """

    def __init__(self, *, warmup: NonNegative, steepness: Positive, weight: NonNegative, free_bits: NonNegative):
        super().__init__(warmup=warmup, weight=weight, free_bits=free_bits)
        self.steepness = steepness

    def ramp(self, epoch: float) -> float:
        """Return the logistic curve, rescaled so that it runs from 0 to 1 exactly."""
        half = self.steepness / 2.0
        s = math.tanh(half * (progress(epoch, self.warmup) - 0.5))  # σ(2a) = (1 + tanh a) / 2
        return clip((s / math.tanh(half / 2.0) + 1.0) / 2.0)


class Cyclical(Constant):
    """Each cycle rises linearly over its first `ratio`, then stays at β (Fu et al. 2019, eq. 6).

    >>> schedule = Cyclical(period=10.0, ratio=0.5, cycles=4, weight=1.0, free_bits=0.0)
    >>> [schedule.weight(epoch) for epoch in (0.0, 2.5, 7.5, 10.0, 40.0)]
    [0.0, 0.5, 1.0, 0.0, 1.0]
    """

    def __init__(
        self,
        *,
        period: Positive,
        ratio: Fraction,
        cycles: Count,
        weight: NonNegative,
        free_bits: NonNegative,
    ):
        super().__init__(weight=weight, free_bits=free_bits)
        self.period, self.ratio, self.cycles = period, ratio, cycles

    def ramp(self, epoch: float) -> float:
        """Return the position within the cycle divided by the rising part, at most 1."""
        cycles = epoch / self.period
        return 1.0 if whole(cycles) >= self.cycles else progress(cycles - whole(cycles), self.ratio)

    @property
    def settled(self) -> float:
        """The end of the last cycle."""
        return self.period * self.cycles


class Capacity(Linear):
    """γ · |KL − C(t)|, C(t) = capacity · min(1, t / warmup) (Burgess et al. 2018, eq. 8).

    >>> schedule = Capacity(capacity=25.0, warmup=10.0, weight=100.0, free_bits=0.0)
    >>> schedule.weight(5.0), schedule.target(5.0)  # γ, and C in nats
    (100.0, 12.5)
    """

    gives = ("target",)

    def __init__(self, *, capacity: NonNegative, warmup: NonNegative, weight: NonNegative, free_bits: NonNegative):
        super().__init__(warmup=warmup, weight=weight, free_bits=free_bits)
        self.capacity = capacity

    def weight(self, epoch: float) -> float:
        """Return γ, which does not change."""
        return self.final_weight

    def target(self, epoch: float) -> float | None:
        """Return C(t) in nats."""
        return self.capacity * self.ramp(epoch)
