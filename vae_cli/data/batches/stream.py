"""Batches of a feed: read in sequence by several readers, decoded ahead, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.data.batches.pixels import Transform
from vae_cli.data.batches.resident import Resident, Stored, place
from vae_cli.data.examples import Examples, Feed, counting
from vae_cli.system import parallel
from vae_cli.system.errors import UserError


class Stream(Resident):
    """A feed as the trainer uses it: by positions in an epoch, one batch after another.

    Of R readers each has its part of an epoch and its share of every batch, [l·B // R, (l+1)·B // R) for reader l.
    A rank that takes its rows of the global batch runs the readers whose shares they are, and opens no other shard; the
    batches are the same for every number of ranks that divides R. Training that begins within an epoch skips what was
    seen, undecoded.
    """

    resident = False

    def __init__(self, feed: Feed, transform: Transform, device: torch.device, resident: bool | str = "auto"):
        if resident is True:
            raise UserError("trainer.resident=true: has no effect on data that stream by; auto or false is allowed")
        self.missing = False
        self.feed, self.transform, self.device = feed, transform, device
        self.readers = [Reader(feed) for _ in range(feed.readers)]
        self.at = (0, 0)  # seed and epoch
        self.ahead: dict[int, list[Future[Examples]]] = {}  # by the place in memory of the index

    def __len__(self) -> int:
        return len(self.feed)

    def part(self, most: int, seed: int = 0) -> Resident:
        """Return at most so many of the examples, drawn at random."""
        return place(self.feed.some(most, seed), self.transform, self.device)

    def batches(self, size: int, most: int | None = None) -> Iterator[Batch]:
        """Yield every example once (`most` of them), the short last batch included."""
        return self.part(most or len(self)).batches(size)

    def order(self, seed: int, epoch: int) -> Tensor:
        """Return the positions of an epoch, whose examples depend on (seed, epoch) alone."""
        self.at, self.ahead = (seed, epoch), {}
        return torch.arange(len(self), dtype=counting(len(self)))

    def prefetch(self, index: Tensor) -> None:
        """Read and decode the next batch in the background."""
        self.ahead[index.data_ptr()] = self._ask(index)

    def _stored(self, index: Tensor | slice) -> Stored:
        assert isinstance(index, Tensor), "a stream is asked for positions"
        asked = self.ahead.pop(index.data_ptr(), None) or self._ask(index)
        parts = [future.result() for future in asked]
        x = torch.cat([part.x[:] for part in parts])
        y = None if parts[0].y is None else torch.cat([part.y for part in parts if part.y is not None])
        return self._moved(x), None if y is None else self._moved(y)

    def _moved(self, x: Tensor) -> Tensor:
        return x.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else x

    def _ask(self, index: Tensor) -> list[Future[Examples]]:
        """Give each reader its share of an index of positions in the global batch."""
        size, many = len(index) * parallel.count(), len(self.readers)
        nth, first = divmod(int(index[0]), size)
        end, steps = first + len(index), len(self) // size
        shares = [(reader, k * size // many, (k + 1) * size // many) for k, reader in enumerate(self.readers)]
        mine = [(reader, low, high) for reader, low, high in shares if first < high and low < end and low < high]
        if any(low < first or high > end for _, low, high in mine):
            raise UserError(f"data.readers={many}: a multiple of the {parallel.count()} ranks is allowed")
        return [
            reader.take(self.at, range(steps * low, steps * high), nth * (high - low), high - low)
            for reader, low, high in mine
        ]


class Reader:
    """Reads and decodes a part of every epoch, in a thread of its own.

    Args:
        feed: what it reads.
    """

    def __init__(self, feed: Feed):
        self.feed, self.thread = feed, ThreadPoolExecutor(1, "read")
        self.place: tuple[Any, ...] = ()  # epoch, part and position that comes next
        self.raw: Iterator[Any] = iter(())

    def take(self, at: tuple[int, int], part: range, position: int, n: int) -> Future[Examples]:
        """Return the n examples at a position of a part of an epoch, as they will be."""
        return self.thread.submit(self._take, at, part, position, n)

    def _take(self, at: tuple[int, int], part: range, position: int, n: int) -> Examples:
        if self.place != (at, part, position):
            self.raw = islice(self._endless(at, part), position, None)
        self.place = (at, part, position + n)
        return self.feed.decode(list(islice(self.raw, n)))

    def _endless(self, at: tuple[int, int], part: range) -> Iterator[Any]:
        """Yield a part again if it gives fewer examples than it should: broken ones may have been skipped."""
        for turn in count():
            empty = True
            for raw in self.feed.read(*at, part, turn):
                empty = False
                yield raw
            if empty:
                raise UserError("data: nothing that can be read is left; see the warnings above")
