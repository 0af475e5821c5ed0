"""Arrays larger than memory, read in place from the file that holds them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

SMALL = 2**28  # bytes of an array that are read into memory without a thought
CHUNK = 2**24  # bytes at once in a pass over a whole array


class Mapped:
    """Rows of an array in a file, used as a tensor [N, *shape]; only what is asked for is read.

    It has those methods of a tensor that examples need. Nothing grows with N but the rows' numbers, 4 bytes each.

    Args:
        array: [M, …] of any number type, mapped from a file; channels may come last.
        dtype: of the tensor.
        bounds: its least and its largest value, where they are known.
        rows: which of the M, [N]; all by default.
        moments: mean and standard deviation [*shape] that the rows are standardised with.
    """

    def __init__(
        self,
        array: np.ndarray,
        dtype: torch.dtype,
        bounds: tuple[float, float] | None = None,
        rows: np.ndarray | None = None,
        moments: tuple[Tensor, Tensor] | None = None,
    ):
        self.array, self.dtype, self.known, self.rows, self.moments = array, dtype, bounds, rows, moments
        self.shape = (len(array) if rows is None else len(rows), *array.shape[1:])
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.shape[0]

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    def element_size(self) -> int:
        """Return the bytes of an element."""
        return self.dtype.itemsize

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Read the examples at an index [B] or in a slice."""
        which = index.numpy() if isinstance(index, Tensor) else index
        rows = which if self.rows is None else self.rows[which]
        read = self.array[rows] if isinstance(rows, slice) else self.array.take(rows, axis=0)
        x = torch.from_numpy(read.astype(_numpy(self.dtype), order="C", copy=isinstance(rows, slice)))
        return x if self.moments is None else (x - self.moments[0]) / self.moments[1]

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Read the examples at an index [B]; `dim` is 0."""
        return self[index]

    def only(self, index: Tensor | slice) -> Mapped:
        """Return the examples at an index, without reading them."""
        rows = np.arange(len(self.array), dtype=_counting(len(self.array))) if self.rows is None else self.rows
        which = index.cpu().numpy() if isinstance(index, Tensor) else index
        return Mapped(self.array, self.dtype, self.known, rows[which], self.moments)

    def to(self, device: torch.device) -> Tensor:
        """Read all of them, into the memory of a device."""
        x = torch.empty(self.shape, dtype=self.dtype, device=device)
        for part in self.parts():
            x[part] = self[part].to(device)
        return x

    def parts(self) -> Iterator[slice]:
        """Yield slices that cover all examples, a modest amount of memory each."""
        many = max(1, CHUNK // (math.prod(self.shape[1:]) * self.element_size()))
        for start in range(0, len(self), many):
            yield slice(start, min(start + many, len(self)))

    def bounds(self) -> tuple[float, float]:
        """Return a value that none is below and one that none is above."""
        if self.known is None:
            found = [torch.stack(torch.aminmax(self[part])) for part in self.parts()]
            low, high = torch.stack(found).unbind(1)
            self.known = float(low.min()), float(high.max())
        return self.known

    def std_mean(self) -> tuple[Tensor, Tensor]:
        """Return the standard deviation and the mean of each element over the examples."""
        return std_mean(self[part] for part in self.parts())

    def standardized(self, mean: Tensor, std: Tensor) -> Mapped:
        """Return the examples with `mean` subtracted and divided by `std`, once they are read."""
        return Mapped(self.array, torch.float32, None, self.rows, (mean, std))


def std_mean(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the standard deviation and the mean [*shape] of examples that come in parts [B, *shape].

    Sums of squares about the mean are merged as in Chan et al. 1979, in float64.
    """
    n, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        x = part.double()
        own, many = x.mean(0), len(x)
        squares = squares + ((x - own) ** 2).sum(0) + (own - mean) ** 2 * (n * many / (n + many))
        mean = mean + (own - mean) * (many / (n + many))
        n += many
    return (squares / n).sqrt().float(), mean.float()


def reserve(file: int, size: int) -> None:
    """Reserve the space on disk now: a full disk met through a memory map would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        os.truncate(file, size)


def _numpy(dtype: torch.dtype) -> type:
    return {torch.uint8: np.uint8, torch.float32: np.float32}[dtype]


def _counting(n: int) -> type:
    return np.int32 if n < 2**31 else np.int64
