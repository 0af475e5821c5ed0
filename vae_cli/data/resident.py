"""Examples that live on the device as they were stored, and become batches there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vae_cli.data.examples import Examples, subset
from vae_cli.data.pixels import Transform


class Resident:
    """Examples on the device; a batch is gathered and transformed there."""

    def __init__(self, examples: Examples, transform: Transform, device: torch.device):
        self.examples, self.transform, self.device = examples.to(device), transform, device

    def __len__(self) -> int:
        return len(self.examples)

    def part(self, most: int, seed: int = 0) -> Resident:
        """Return at most so many of the examples, drawn at random, in their order."""
        return Resident(subset(self.examples, most, seed), self.transform, self.device)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the order of the examples in an epoch: a permutation [N] that depends on (seed, epoch) alone."""
        mixed = (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
        generator = torch.Generator(self.device).manual_seed(mixed)
        return torch.randperm(len(self), generator=generator, device=self.device)

    def batch(self, index: Tensor | slice) -> tuple[Tensor, Tensor | None]:
        """Return (x [B, *shape] float32, y [B] or [B, A] or None) of the examples at an index [B]."""
        if isinstance(index, slice):
            x, y = self.examples.x[index], self.examples.y
            return self.transform(x), None if y is None else y[index]
        x = self.examples.x.index_select(0, index)
        y = self.examples.y
        return self.transform(x), None if y is None else y.index_select(0, index)

    def batches(self, size: int, most: int | None = None) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield every example (the first `most` of them) once in order, the short last batch included."""
        end = len(self) if most is None else min(most, len(self))
        for start in range(0, end, size):
            yield self.batch(slice(start, min(start + size, end)))
