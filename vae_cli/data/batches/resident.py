"""Stored examples become batches on the device: from its own memory, or streamed from the host's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import torch
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.data.batches.mapped import Mapped
from vae_cli.data.batches.pixels import Transform
from vae_cli.data.examples import Examples, counting
from vae_cli.system.errors import UserError
from vae_cli.system.machine import free_memory
from vae_cli.system.randomness import mixed

ROOM = 0.5  # share of the device's free memory that examples may take

Stored = tuple[Tensor, Tensor | None]


class Resident:
    """Examples on the device; a batch is gathered and transformed there.

    Attributes:
        resident: whether the examples are in the device's memory.
    """

    resident = True

    def __init__(self, examples: Examples, transform: Transform, device: torch.device, *, missing: bool = False):
        self.examples, self.transform, self.device = examples.to(device), transform, device
        self.missing = missing

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def observed(self) -> float:
        """How many elements of an example are known, in the mean: all of them, where none may be missing."""
        if not self.missing or not isinstance(self.examples.x, Tensor):
            return float(math.prod(self.examples.shape))
        return float((~self.examples.x.isnan()).sum()) / len(self)

    def part(self, most: int, seed: int = 0) -> Resident:
        """Return at most so many of the examples, drawn at random, in their order."""
        return type(self)(self.examples.some(most, seed), self.transform, self.device, missing=self.missing)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the order of the examples in an epoch: a permutation [N] that depends on (seed, epoch) alone."""
        generator = torch.Generator(self.device).manual_seed(mixed(seed, epoch))
        kind = counting(len(self)) if self.device.type == "cpu" else torch.int64
        return torch.randperm(len(self), generator=generator, device=self.device, dtype=kind)

    def batch(self, index: Tensor | slice) -> Batch:
        """Return the examples at an index [B]; elements that are NaN where they are stored are not known."""
        x, y = self._stored(index)
        if not self.missing:
            return Batch(self.transform(x), y)
        known = ~x.isnan()
        return Batch(self.transform(x.nan_to_num(0.0)), y, known)

    def prefetch(self, index: Tensor) -> None:
        """Announce the index that `batch` will be asked for next."""

    def batches(self, size: int, most: int | None = None) -> Iterator[Batch]:
        """Yield every example (the first `most` of them) once in order, the short last batch included."""
        end = len(self) if most is None else min(most, len(self))
        for start in range(0, end, size):
            yield self.batch(slice(start, min(start + size, end)))

    def _stored(self, index: Tensor | slice) -> Stored:
        x, y = self.examples.x, self.examples.y
        if isinstance(index, slice):
            return x[index], None if y is None else y[index]
        return x.index_select(0, index), None if y is None else y.index_select(0, index)


class Streamed(Resident):
    """Examples in the host's memory (or a file mapped there); each batch is gathered ahead by a thread, then copied.

    Order and numbers are those of `Resident`: the order is drawn on the device, transforms draw there.
    """

    resident = False

    def __init__(self, examples: Examples, transform: Transform, device: torch.device, *, missing: bool = False):
        self.examples, self.transform, self.device, self.missing = examples, transform, device, missing
        self.thread = ThreadPoolExecutor(1, "gather")
        self.ahead: dict[int, Future[Stored]] = {}  # by the place in memory of the index

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the order of an epoch, on the host."""
        self.ahead.clear()
        return super().order(seed, epoch).cpu()

    def prefetch(self, index: Tensor) -> None:
        """Gather the next batch in the background."""
        self.ahead[index.data_ptr()] = self.thread.submit(self._gather, index)

    def _stored(self, index: Tensor | slice) -> Stored:
        expected = self.ahead.pop(index.data_ptr(), None) if isinstance(index, Tensor) else None
        found = self._gather(index) if expected is None else expected.result()
        x, y = (
            part if part is None else part.to(self.device, non_blocking=self.device.type == "cuda") for part in found
        )
        assert x is not None
        return x, y

    def _gather(self, index: Tensor | slice) -> Stored:
        x, y = super()._stored(index.cpu() if isinstance(index, Tensor) else index)
        if self.device.type != "cuda":
            return x, y
        return x.pin_memory(), None if y is None else y.pin_memory()


def free_on(device: torch.device) -> int:
    """Return the free bytes of memory of a CUDA device, torch's own reserve included."""
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def place(
    examples: Examples,
    transform: Transform,
    device: torch.device,
    resident: bool | str = "auto",
    *,
    missing: bool = False,
) -> Resident:
    """Put examples on the device where they fit into half of its free memory, or as `resident` says; else stream.

    On the CPU what is in a file is streamed from it, however small: the system keeps what it can of it in memory.

    Raises:
        UserError: they shall be in the host's memory and do not fit there.
    """
    size = sum(part.numel() * part.element_size() for part in (examples.x, examples.y) if part is not None)
    in_file = isinstance(examples.x, Mapped)
    if resident == "auto":
        resident = not in_file if device.type != "cuda" else size < ROOM * free_on(device)
    elif resident and in_file and device.type != "cuda" and size > (free := free_memory()):
        raise UserError(
            f"trainer.resident=true: the examples need {size / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free; "
            "auto or false is allowed"
        )
    return (Resident if resident else Streamed)(examples, transform, device, missing=missing)
