"""What torch.distributions leaves without a word."""

from __future__ import annotations

from copy import copy
from typing import Any, Self

import torch
from torch import Tensor
from torch.distributions import Distribution


def exact(device: torch.device) -> torch.dtype:
    """Return float64 where the device has it: the type for sums and differences of large terms."""
    return torch.float32 if device.type == "mps" else torch.float64


class Explained(Distribution):
    """A distribution that says in a sentence what it does not have, where torch raises an error without a word.

    Subclasses give the moments they have in closed form; the standard deviation follows from the variance.

    Attributes:
        batched: names of the tensors [*batch, …] that `expand` expands; one with fewer dimensions than batch and event
            together broadcasts, and stays as it is.
    """

    arg_constraints: dict[str, Any] = {}
    batched: tuple[str, ...] = ()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the same distribution with a larger batch."""
        found, shape = copy(self), torch.Size(batch_shape)
        for name in self.batched:
            setattr(found, name, self._expanded(getattr(self, name), shape))
        found._batch_shape = shape
        return found

    def _expanded(self, value: Tensor, batch_shape: torch.Size) -> Tensor:
        own = len(self.batch_shape)
        if value.ndim < own + len(self.event_shape):
            return value
        return value.expand(batch_shape + value.shape[own:])

    @property
    def mean(self) -> Tensor:
        """The mean [*batch, *event], where a subclass gives it."""
        raise lacking(self, "mean", "sample((1000,)).mean(0)")

    @property
    def mode(self) -> Tensor:
        """The most likely value [*batch, *event], where a subclass gives it."""
        raise lacking(self, "mode", "the likeliest of many draws, by log_prob")

    @property
    def variance(self) -> Tensor:
        """The variance of each element [*batch, *event], where a subclass gives it."""
        raise lacking(self, "variance", "sample((1000,)).var(0)")

    def entropy(self) -> Tensor:
        """Return the entropy [*batch], nats, where a subclass gives it."""
        raise lacking(self, "entropy", "-log_prob(sample((1000,))).mean(0)")

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw with gradients, where a subclass can."""
        raise NotImplementedError(f"{named(self)} has no draws with gradients; sample() draws without")


def lacking(distribution: Distribution, what: str, instead: str) -> NotImplementedError:
    """Return the error that says what a distribution has no closed form for, and how to estimate it."""
    return NotImplementedError(f"{named(distribution)} has no {what} in closed form; an estimate: {instead}")


def named(distribution: Distribution) -> str:
    """Return the name that errors call a distribution by."""
    return type(distribution).__name__
