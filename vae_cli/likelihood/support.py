"""What x may be: which data a likelihood accepts, what log p(x) measures, and bits per dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Support:
    """Base of the supports.

    Attributes:
        binarize: whether grey values in [0, 1] are made binary where data.binarize=auto.
        standardize: whether real values beyond [0, 1] are standardised where data.standardize=auto.
        mass: whether log p(x) is the logarithm of a mass, not of a density.
    """

    binarize: bool = False
    standardize: bool = False
    mass: bool = False

    def refusal(self, spec: Any) -> str | None:
        """Say why data (a `data.Spec`) are not accepted and what is; None where they are."""
        return None

    def measure(self, spec: Any, how: str = "") -> str:
        """Say in a few words what log p(x) of such data is of; `how` they became binary is known to the caller."""
        if self.mass:
            return f"log-mass of {'binary values' + how if spec.binary else f'{spec.levels} grey levels'}"
        if spec.dequantized:
            return f"log-density of {spec.dequantized} grey levels dequantised to [0, 1]"
        units = "in the data's own units" + (", standardised in training" if spec.mean else "")
        return f"log-density {'on discrete values' if spec.levels else 'of real values'}, {units}"

    def bits_per_dim(self, elbo: float, spec: Any, observed: float | None = None) -> float | None:
        """Return −ELBO in bits for each element that was observed, or None where that means nothing.

        It means something for a mass over the very values of the data, and for the density of dequantised grey levels,
        where each level's cell has width 1/L: −ELBO / (D ln 2) + log2 L.

        Args:
            elbo: nats for an example, the mean.
            spec: of the data.
            observed: D, how many elements of an example were observed, in the mean; None for all.
        """
        bits = -elbo / ((spec.size if observed is None else observed) * math.log(2.0))
        if self.mass:
            return bits if self.is_mass_of(spec) else None
        return bits + math.log2(spec.dequantized) if spec.dequantized else None

    def is_mass_of(self, spec: Any) -> bool:
        """Whether log p(x) is a mass over the very values of the data."""
        return self.mass and spec.levels is not None


@dataclass(frozen=True)
class Real(Support):
    """Any real value."""

    standardize: bool = True


@dataclass(frozen=True)
class Unit(Support):
    """Values in [0, 1]."""

    def refusal(self, spec: Any) -> str | None:
        """Refuse values beyond [0, 1]."""
        return None if spec.unit else "values in [0, 1] are allowed (gaussian and laplace take any)"


@dataclass(frozen=True)
class Binary(Unit):
    """0 or 1; grey values between them give a cross-entropy, which is no log-likelihood."""

    binarize: bool = True
    mass: bool = True

    def measure(self, spec: Any, how: str = "") -> str:
        """Say what log p(x) is of; of grey values it is none."""
        if not spec.binary:
            return "cross-entropy of grey values under Bernoulli, no log-likelihood"
        return super().measure(spec, how)

    def is_mass_of(self, spec: Any) -> bool:
        """Whether the data are binary."""
        return spec.binary


@dataclass(frozen=True)
class Levels(Support):
    """Grey levels k / (L − 1)."""

    mass: bool = True

    def refusal(self, spec: Any) -> str | None:
        """Refuse values that are no grey levels."""
        return (
            None
            if spec.levels is not None
            else "they are no grey levels; bytes, or whole numbers 0 … 255 in pictures, are allowed"
        )
