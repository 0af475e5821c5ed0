"""WebDataset shards: tar files of examples, read in sequence, so that a set of any size trains from any storage.

A sample is a picture (png, jpg, …) or an array (npy), with a label in cls (a class) or json (a class, attributes, or
{"label": …}); or a block of small examples, x.npy [B, *shape] with y.npy [B] or [B, A].
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_cli.config.types import COMMAND, Color, Count, Frame, OnBroken, Resize
from vae_cli.data.cache import remembered, stamp
from vae_cli.data.examples import Examples, Feed, Splits, gathered
from vae_cli.data.files import GREY, SUFFIXES, frame, is_whole, levels_of, open_picture, picture, refuse_resize_alone
from vae_cli.data.index import NAME, Index, Shard, read_index
from vae_cli.data.mapped import std_mean
from vae_cli.errors import UserError, first_line

MOST = 1_000_000  # shards that a pattern may name
BRACES = re.compile(r"\{(-?\d{1,4000}|[A-Za-z])\.\.(-?\d{1,4000}|[A-Za-z])(?:\.\.-?(\d{1,4000}))?\}|([{},])")


def shards(
    *,
    path: str,
    valid_path: str | None,
    test_path: str | None,
    index: str | None,
    size: Frame | None,
    resize: Resize,
    color: Color | None,
    readers: Count,
    buffer: Count,
    on_broken: OnBroken,
    valid: None,
    test: None = None,
) -> Splits:
    """Return training examples as a feed of shards; those of validation and test are read at once.

    Raises:
        UserError: webdataset is not installed, there are no shards, or one is broken.
    """
    if find_spec("webdataset") is None:
        raise UserError("data=shards: needs webdataset; pip install 'vae-cli[shards]'")
    refuse_resize_alone(size, resize)
    reader = Reader(None if size is None else frame(size), resize, color, skip=on_broken == "skip")
    found, about = _find({"train": path, "valid": valid_path, "test": test_path}, index, reader)
    for url in [url for urls in found.values() for url in urls if not url.startswith(COMMAND)]:
        if not Path(url).is_file():
            reader.tell(url, Broken("it is not there"))
    feeds = {split: Shards(urls, about[split], reader, readers, buffer) for split, urls in found.items()}
    feeds["train"].refuse_another_shape()
    rest: dict[str, Any] = {split: feeds[split].all() for split in ("valid", "test") if split in feeds}
    own = about["train"]
    names = tuple(own.names) if own.names else None
    return Splits(feeds["train"], **rest, levels=own.levels, names=names, whole=own.whole)


def _find(
    paths: dict[str, str | None], index: str | None, reader: Reader
) -> tuple[dict[str, list[str]], dict[str, Index]]:
    """Return the shards of each split there is, and what they hold."""
    folder = Path(paths["train"] or "")
    known = read_index(Path(index), "data.index") if index is not None else None
    if known is None and (folder / NAME).is_file():
        known = read_index(folder / NAME, f"data.path={folder}")
    found = {}
    for split, path in paths.items():
        own = [os.path.abspath(folder / shard.file) for shard in getattr(known, split, ())] if folder.is_dir() else []
        if path is not None and (split != "train" or not own):
            own = _expanded("data.path" if split == "train" else f"data.{split}_path", path)
        if own:
            found[split] = own
    if known is not None:
        known = known.model_copy(update={"shape": reader.framed(known.shape)})
        return found, {split: _fitting(known, split, urls) for split, urls in found.items()}
    first = reader.scan(found["train"], None)
    return found, {split: reader.scan(urls, None if split == "train" else first) for split, urls in found.items()}


def _expanded(key: str, path: str) -> list[str]:
    """Return the shards that a setting names: a folder's, those of a pattern with {000..123}, or a pipe's commands.

    Raises:
        UserError: there are none, or they are somewhere else than in files.
    """
    if re.match(r"\w+://", path):
        raise UserError(f"{key}={path}: local paths and pipe:COMMAND (pipe:curl -s URL) are allowed")
    if path.startswith(COMMAND):
        return _without_braces(key, path)
    if Path(path).is_dir():
        urls = sorted(
            os.path.abspath(file) for file in Path(path).iterdir() if re.search(r"\.(tar|tgz|tar\.gz)$", file.name)
        )
    else:
        urls = [os.path.abspath(url) for url in _without_braces(key, path)]  # no expansion is a command
    if absent := [url for url in urls if not Path(url).is_file()]:
        raise UserError(f"{key}={path}: {absent[0]} is not there; tar files are allowed")
    if not urls:
        raise UserError(f"{key}={path}: no shards in it (*.tar)")
    return urls


def _without_braces(key: str, pattern: str) -> list[str]:
    """Return the texts that a pattern with {000..123} and {a,b} stands for.

    Raises:
        UserError: they are too many, or its braces do not match.
    """
    import braceexpand

    if (many := _many(pattern)) > MOST:
        raise UserError(f"{key}={pattern}: names up to {many:,} shards; at most {MOST:,} are allowed")
    try:
        return list(braceexpand.braceexpand(pattern))
    except ValueError as error:
        raise UserError(f"{key}={pattern}: no pattern of shards ({first_line(error)})") from error


def _many(pattern: str) -> int:
    """Return how many texts a pattern stands for, without making them; lists within lists count as more."""
    many, lists = 1, []
    for first, last, step, mark in BRACES.findall(pattern):
        if first:
            ends = [int(end) if end.lstrip("-").isdecimal() else ord(end) for end in (first, last)]
            many *= abs(ends[1] - ends[0]) // max(1, int(step or 1)) + 1
        elif mark == "{":
            lists.append(1)
        elif lists and mark == ",":
            lists[-1] += 1
        elif lists:
            many *= lists.pop()
    return many


def _fitting(index: Index, split: str, urls: list[str]) -> Index:
    """Return an index whose training shards are those of a split.

    Raises:
        UserError: it tells of another number of shards.
    """
    known = getattr(index, split)
    if len(known) != len(urls):
        raise UserError(f"data.index: it tells of {len(known)} {split} shards, {len(urls)} were given")
    return index.model_copy(update={"train": known})


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
        """Say what is broken: on stderr, once, where it is skipped.

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
                label = self._tried(_label, sample)
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
            self.tell(_name(sample), error)
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
        """Return samples as examples; a broken one that is skipped gives its place to another."""
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
            return x, self._y(_label(sample))
        except Exception as error:
            self.reader.tell(_name(sample), error)
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


def _name(sample: Any) -> str:
    where = sample[2] if isinstance(sample, tuple) else sample
    return f"example {where['__key__']} of {where['__url__']}"


def _label(sample: Any) -> Any:
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
