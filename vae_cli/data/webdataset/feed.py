"""Shards as a stream of training examples."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from vae_cli.config.types import COMMAND
from vae_cli.data.examples import Examples, Feed, gathered
from vae_cli.data.webdataset.index import Index
from vae_cli.data.webdataset.reader import Broken, Reader, label_of, name_of
from vae_cli.system.errors import UserError


class Shards(Feed):
    """The training examples of shards.

    Args:
        urls: files, or pipe: and a command.
        index: of what they hold; its training shards are these.
        reader: how they are read.
        readers: parts of an epoch that are read side by side.
        buffer: examples in the shuffle buffers of all readers together.
    """

    def __init__(self, urls: Sequence[str], index: Index, reader: Reader, readers: int, buffer: int):
        self.urls, self.index, self.reader, self.readers, self.buffer = urls, index, reader, readers, buffer
        self.counts = [shard.examples for shard in index.train]
        self.shape, self.attributes = tuple(index.shape), index.attributes
        self.dtype = torch.float32 if index.levels is None else torch.uint8
        self.positions = {label: k for k, label in enumerate(index.labels or ())}
        self.moments: tuple[Tensor, Tensor] | None = None

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, seed: int, epoch: int, part: range, turn: int = 0) -> Iterator[Any]:
        """Yield the samples of a part of an epoch: shards in a new order, then mixed in a buffer."""
        import webdataset

        order = list(range(len(self.urls)))
        random.Random(f"{seed} {epoch}").shuffle(order)
        rng = random.Random(f"{seed} {epoch} {part} {turn}")
        size = max(1, self.buffer // self.readers)
        return webdataset.shuffle(size, initial=size, rng=rng)(self._between(order, part))

    def _between(self, order: Iterable[int], part: range) -> Iterator[Any]:
        """Yield the samples of a part of all that the shards, in an order, hold together; open no others."""
        start = 0
        for k in order:
            low, high = max(part.start - start, 0), min(part.stop - start, self.counts[k])
            if low < high:
                yield from islice(self.reader.samples(self.urls[k], self.counts[k]), low, high)
            start += self.counts[k]

    def refuse_another_shape(self) -> None:
        """Refuse an index whose examples are of another shape than the first one, before a model is built for them.

        What a command gives is not asked for twice, and where broken examples are skipped the first one says nothing.

        Raises:
            UserError: it is so.
        """
        if self.reader.skip or self.urls[0].startswith(COMMAND):
            return
        if first := list(islice(self.reader.samples(self.urls[0], None), 1)):
            self.decode(first)

    def all(self) -> Examples:
        """Return every example, in order."""
        every = range(len(self))
        return gathered(self.decode, self._between(range(len(self.urls)), every), len(self))

    def decode(self, raw: Sequence[Any]) -> Examples:
        """Return samples as examples; a broken one that is skipped is replaced by another."""
        found = [one for one in map(self._decoded, raw) if one is not None]
        if not found:
            raise UserError("data: nothing that can be read is left in the shards; see the warnings above")
        found += [found[0]] * (len(raw) - len(found))
        x = torch.stack([x for x, _ in found])
        y = None if self.index.labels is None and self.attributes is None else torch.stack([y for _, y in found])
        return Examples(x if self.moments is None else (x - self.moments[0]) / self.moments[1], y)

    def _decoded(self, sample: Any) -> tuple[Tensor, Any] | None:
        try:
            x = self.reader.x(sample)
            x = x[0] if x.shape == (1, *self.shape) else x  # pictures without an axis of channels
            x = self._as_stored(x)
            if tuple(x.shape) != self.shape or x.dtype != self.dtype:
                raise Broken(f"{list(x.shape)} {x.dtype} where {list(self.shape)} {self.dtype} is expected")
            return x, self._y(label_of(sample))
        except Exception as error:
            self.reader.tell(name_of(sample), error)
            return None

    def _as_stored(self, x: Tensor) -> Tensor:
        """Return whole numbers as bytes where the set has grey levels, as floats where it has none."""
        if x.dtype != torch.int64:
            return x
        if self.index.levels is None:
            return x.float()
        if not 0 <= int(x.min()) <= int(x.max()) < self.index.levels:
            raise Broken(f"whole numbers from {x.min()} to {x.max()} where 0 … {self.index.levels - 1} are expected")
        return x.to(torch.uint8)

    def _y(self, label: Any) -> Tensor | None:
        if self.index.labels is not None:
            if label not in self.positions:
                raise Broken(f"label {label!r} is none of {', '.join(self.positions)}"[:200])
            return torch.tensor(self.positions[label])
        if self.attributes is None:
            return None
        if not isinstance(label, list) or len(label) != self.attributes:
            raise Broken(f"no {self.attributes} attributes")
        return torch.tensor(label, dtype=torch.float32)

    def bounds(self) -> tuple[float, float]:
        """Return the range of the values."""
        low, high = torch.tensor(self.index.low), torch.tensor(self.index.high)
        if self.moments is not None:
            low, high = ((low - self.moments[0]) / self.moments[1], (high - self.moments[0]) / self.moments[1])
        return float(low.min()), float(high.max())

    def std_mean(self) -> tuple[Tensor, Tensor]:
        """Return what the index says."""
        if self.index.mean is None or self.index.std is None:
            raise UserError("data.standardize=true: the index of the shards holds no mean and std of their values")
        return torch.tensor(self.index.std).view(self.shape), torch.tensor(self.index.mean).view(self.shape)

    def standardized(self, mean: Tensor, std: Tensor) -> Shards:
        """Return the examples with `mean` subtracted, divided by `std`."""
        other = Shards(self.urls, self.index, self.reader, self.readers, self.buffer)
        other.moments = mean, std
        return other
