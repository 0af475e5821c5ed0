"""What the parts need to know of the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spec:
    """What the parts need to know of the data as the model sees them."""

    shape: tuple[int, ...]  # of one example
    levels: int | None  # L where values are k / (L − 1), else None
    low: float  # no value is below
    high: float  # no value is above
    names: tuple[str, ...] | None = None  # of the classes, where labels are classes
    attributes: int | None = None  # A, where labels are attribute vectors
    dequantized: int | None = None  # the L that dequantised values came from
    mean: tuple[float, ...] | None = None  # [D] subtracted from each element, where data were standardised
    std: tuple[float, ...] | None = None  # [D] that each element was then divided by
    center: tuple[float, ...] | None = None  # [D] mean of each element of unbounded data that keep their own units
    spread: tuple[float, ...] | None = None  # [D] and its standard deviation
    features: tuple[str, ...] | None = None  # [D] the names of the elements, where they have any
    missing: bool = False  # whether elements may be missing (NaN where they are stored)

    @property
    def classes(self) -> int | None:
        """The number of classes, or None."""
        return len(self.names) if self.names else None

    @property
    def size(self) -> int:
        """The number of elements of one example, D."""
        return math.prod(self.shape)

    @property
    def binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return self.levels == 2

    @property
    def unit(self) -> bool:
        """Whether every value is in [0, 1]."""
        return self.low >= 0.0 and self.high <= 1.0

    @property
    def log_volume(self) -> float:
        """Σ log std: what a log-density of standardised values exceeds that of the data's own values by, nats."""
        return sum(self.log_std)

    @property
    def log_std(self) -> tuple[float, ...]:
        """log of what each element was divided by, [D]; empty where data were not standardised."""
        return tuple(math.log(std) for std in self.std or ())

    def standardize(self, x: Tensor) -> Tensor:
        """Return examples [..., *shape] in their own units as training saw them."""
        mean, std = self._moments(x)
        return x if mean is None else (x - mean) / std

    def restore(self, x: Tensor) -> Tensor:
        """Undo `standardize`."""
        mean, std = self._moments(x)
        return x if mean is None else x * std + mean

    def _moments(self, like: Tensor) -> tuple[Any, Any]:
        if self.mean is None or self.std is None:
            return None, None
        mean, std = (torch.tensor(v, device=like.device).view(self.shape) for v in (self.mean, self.std))
        return mean, std

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a checkpoint."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Spec:
        """Return the description that `to_dict` wrote."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)
