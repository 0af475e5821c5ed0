"""Samples of shards, read and decoded."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_cli.config.types import COMMAND
from vae_cli.data.batches.cache import remembered, stamp
from vae_cli.data.batches.mapped import std_mean
from vae_cli.data.decoding import GREY, open_picture, picture
from vae_cli.data.images import SUFFIXES
from vae_cli.data.levels import is_whole, levels_of
from vae_cli.data.webdataset.index import Index, Shard
from vae_cli.system.errors import UserError


class Broken(Exception):
    """A shard or a sample cannot be read."""


@dataclasses.dataclass
class Reader:
    """How shards are read.

    Args:
        size: height and width that pictures are cut and scaled to; None for as they are.
        resize: how they fill the size: crop, pad or stretch.
        color: rgb or grayscale; None for as they are.
        skip: tell of what is broken and go on without it, in place of stopping.
    """

    size: tuple[int, int] | None
    resize: str
    color: str | None
    skip: bool
    told: set[str] = dataclasses.field(default_factory=set)

    def samples(self, url: str, expected: int | None) -> Iterator[Any]:
        """Yield the samples of a shard as they are stored, blocks one by one."""
        import webdataset.tariterators as tar

        n = 0
        try:
            with _opened(url) as stream:
                files = tar.tar_file_expander(iter([{"url": url, "stream": stream}]))
                for sample in tar.group_by_keys(files):
                    for row in _rows(sample):
                        n += 1
                        yield row
            if expected is not None and n != expected:
                raise Broken(f"it holds {n} examples, not {expected}")
        except Exception as error:
            self.tell(url, error)

    def tell(self, what: str, error: Exception) -> None:
        """Report what is broken: on stderr, once, if it is skipped.

        Raises:
            UserError: it is not to be skipped.
        """
        said = getattr(error, "strerror", None) or (error.args[0] if error.args else type(error).__name__)
        reason = str(said).split(" @ <")[0].splitlines()[0]
        if not self.skip:
            raise UserError(f"data: {what} is broken ({reason}); data.on_broken=skip goes on without it") from error
        if what not in self.told:
            self.told.add(what)
            print(f"warning: {what} is broken ({reason}) and skipped", file=sys.stderr)

    def x(self, sample: Any) -> Tensor:
        """Return the example of a sample, decoded."""
        if isinstance(sample, tuple):
            return _tensor(sample[0])
        if "npy" in sample:
            return _tensor(np.load(io.BytesIO(sample["npy"]), allow_pickle=False))
        found = next((name for name in sample if f".{name}" in SUFFIXES), None)
        if found is None:
            raise Broken("no picture and no npy in it")
        opened = open_picture(io.BytesIO(sample[found]))
        grey = opened.mode in GREY if self.color is None else self.color == "grayscale"
        return picture(opened, self.size, "L" if grey else "RGB", resize=self.resize)

    def framed(self, shape: list[int]) -> list[int]:
        """Return the shape that examples of a shape have once they are cut and scaled."""
        if self.size is None and self.color is None:
            return shape
        channels = {"rgb": [3], "grayscale": [1], None: shape[:-2]}[self.color]
        return [*channels, *(self.size or shape[-2:])]

    def scan(self, urls: Sequence[str], like: Index | None) -> Index:
        """Return what shards hold, by reading them once; files that were read before are not read again."""
        if any(url.startswith(COMMAND) for url in urls):
            return self._scan(urls, like)
        key = ["shards 2", *(stamp(Path(url)) for url in urls), self.size, self.color, self.skip, like]
        return Index.model_validate(remembered(key, lambda: self._scan(urls, like).model_dump()))

    def _scan(self, urls: Sequence[str], like: Index | None) -> Index:
        counts, labels, attributes, first = [], set(), None, None
        for k, url in enumerate(urls):
            n = 0
            for sample in self.samples(url, None):
                n += 1
                first = self._tried(self.x, sample) if first is None else first
                label = self._tried(label_of, sample)
                attributes = len(label) if isinstance(label, list) else attributes
                labels |= {label} if isinstance(label, str) else set()
            counts.append(Shard(file=f"{k}", examples=n))
        if first is None:
            raise UserError(f"data.path: no examples in {urls[0]} … {urls[-1]}")
        if like is not None:
            return like.model_copy(update={"train": counts})
        names = sorted(labels, key=lambda label: (int(label) if label.isdigit() else 0, label)) or None
        values = self._values(urls, first) if first.dtype != torch.uint8 else {"levels": 256, "low": 0.0, "high": 1.0}
        return Index(shape=list(first.shape), labels=names, names=names, attributes=attributes, train=counts, **values)

    def _tried(self, read: Callable[[Any], Any], sample: Any) -> Any:
        try:
            return read(sample)
        except Exception as error:
            self.tell(name_of(sample), error)
            return None

    def _values(self, urls: Sequence[str], first: Tensor) -> dict[str, Any]:
        """Return the range and the moments of examples that are no bytes, or how many grey levels they have."""
        bounds = []

        def parts() -> Iterator[Tensor]:
            for url in urls:
                for sample in self.samples(url, None):
                    if (x := self._tried(self.x, sample)) is not None:
                        bounds.append((float(x.min()), float(x.max())))
                        yield x.unsqueeze(0)

        std, mean = std_mean(parts())
        low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
        dtype = np.dtype(str(first.dtype).removeprefix("torch."))
        levels = levels_of(dtype, first.shape, low, high)
        about = {"levels": levels, "whole": is_whole(dtype, levels)}
        if levels is not None:
            return about | {"low": 0.0, "high": 1.0}
        moments = {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
        return about | {"low": low, "high": high, **moments}


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    """Yield the bytes of a shard.

    Raises:
        Broken: its command failed.
    """
    if not url.startswith(COMMAND):
        with open(url, "rb") as file:
            yield file
        return
    with subprocess.Popen(url.removeprefix(COMMAND), shell=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield process.stdout
        process.stdout.read()  # what follows the archive's end
    if process.returncode:
        raise Broken(f"its command ended with {process.returncode}")


def _rows(sample: dict[str, Any]) -> Iterator[Any]:
    """Yield a sample, or the examples of a block: (x, label, where it is)."""
    if "x.npy" not in sample:
        yield sample
        return
    x = np.load(io.BytesIO(sample["x.npy"]), allow_pickle=False)
    y = np.load(io.BytesIO(sample["y.npy"]), allow_pickle=False).tolist() if "y.npy" in sample else [None] * len(x)
    for k, (row, label) in enumerate(zip(x, y, strict=True)):
        where = {"__url__": sample["__url__"], "__key__": f"{sample['__key__']}[{k}]"}
        yield row.copy(), str(label) if isinstance(label, int) else label, where


def _tensor(x: np.ndarray) -> Tensor:
    """Return an array as uint8 (bytes), int64 (other whole numbers, truth values) or float32."""
    kind = x.dtype if x.dtype == np.uint8 else np.int64 if x.dtype.kind in "bui" else np.float32
    return torch.from_numpy(x.astype(kind, copy=False))


def name_of(sample: Any) -> str:
    """Return the name of a sample in error messages."""
    where = sample[2] if isinstance(sample, tuple) else sample
    return f"example {where['__key__']} of {where['__url__']}"


def label_of(sample: Any) -> Any:
    """Return a sample's label: the text or position of a class, a list of attributes, or None."""
    if isinstance(sample, tuple):
        return sample[1]
    if "cls" in sample:
        return sample["cls"].decode().strip()
    if "json" not in sample:
        return None
    found = json.loads(sample["json"])
    found = found.get("label") if isinstance(found, dict) else found
    return found if found is None or isinstance(found, list) else str(found)
