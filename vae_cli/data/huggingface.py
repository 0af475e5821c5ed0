"""Data sets of the Hugging Face hub, or in its formats on disk, by the datasets library; none of their code runs."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_cli.config.types import Color, Count, Frame, Resize
from vae_cli.data.batches.cache import cached
from vae_cli.data.decoding import GREY, MODES, frame, in_threads, open_picture, picture, refuse_resize_alone
from vae_cli.data.examples import Examples, Feed, Splits
from vae_cli.system.errors import UserError, first_line, suggest

OWN = {"valid": ("validation", "valid", "val"), "test": ("test",)}  # what splits are called


def huggingface(
    *,
    path: str,
    name: str | None,
    split: str,
    valid_split: str | None,
    test_split: str | None,
    image: str | None,
    label: str | None,
    size: Frame | None,
    resize: Resize,
    color: Color | None,
    streaming: bool,
    examples: Count | None,
    readers: Count,
    buffer: Count,
) -> Splits:
    """Return a data set's pictures [N, C, H, W] bytes with their classes; where it is streamed, training as a feed.

    Raises:
        UserError: datasets is not installed, the data set cannot be loaded, or has no such split or column.
    """
    if find_spec("datasets") is None:
        raise UserError("data=huggingface: needs datasets; pip install 'vae-cli[huggingface]'")
    if not streaming and (examples is not None or readers != 1):
        key = "readers" if examples is None else "examples"
        raise UserError(f"data.{key}: has no effect with data.streaming=false")
    refuse_resize_alone(size, resize)
    parts: dict[str, Any] = _load(path, name, streaming)
    given = {"train": split, "valid": valid_split, "test": test_split}
    chosen = {key: _chosen(parts, key, wanted) for key, wanted in given.items()}
    columns = Columns(parts[split], image, label, None if size is None else frame(size), color, resize)
    own: dict[str, Any] = {
        key: columns.examples(parts[each])
        for key, each in chosen.items()
        if each and not (streaming and key == "train")
    }
    if streaming:
        many = examples or _count(parts[split], split)
        return Splits(Streaming(parts[split], columns, many, readers, buffer), **own, levels=256, names=columns.names)
    return Splits(**own, levels=256, names=columns.names)


def _load(path: str, name: str | None, streaming: bool) -> dict[str, Any]:
    """Return the splits of a data set, from where it was saved to disk or from the hub."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(
        logging.ERROR
    )  # the error at the end covers its attempts without a network
    try:
        if any((Path(path) / file).is_file() for file in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(path)
            return dict(found) if isinstance(found, dict) else {"train": found}
        return dict(datasets.load_dataset(path, name, streaming=streaming))
    except Exception as error:
        raise UserError(f"data.path={path}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error


def _chosen(parts: dict[str, Any], key: str, given: str | None) -> str | None:
    """Return the split that serves for training, validation or test."""
    if given is None:
        return next((name for name in OWN[key] if name in parts), None)
    if given not in parts:
        setting = "split" if key == "train" else f"{key}_split"
        raise UserError(f"data.{setting}={given}: no such split{suggest(given, parts)} (allowed: {', '.join(parts)})")
    return given


def _count(part: Any, split: str) -> int:
    known = (part.info.splits or {}).get(split)
    many = getattr(part, "num_rows", None) or (known and known.num_examples)
    if not many:
        raise UserError("data.examples: required; the stream does not say how many training examples it has")
    return many


class Columns:
    """Which columns of a data set hold the pictures and their labels, and what becomes of them.

    Args:
        part: of the data set.
        image: the column of the pictures; None for the first of that kind.
        label: of the labels; None for the first of classes, if any.
        size: height and width that pictures are cut and scaled to; None for as they are.
        color: rgb or grayscale; None for as the first one is.
        resize: how they fill the size: crop, pad or stretch.
    """

    def __init__(
        self,
        part: Any,
        image: str | None,
        label: str | None,
        size: tuple[int, int] | None,
        color: str | None,
        resize: str,
    ):
        import datasets

        features = part.features or {}
        found = _column(features, "image", image, datasets.Image)
        if found is None:
            raise UserError(f"data.image: no column of pictures (there are {', '.join(features)})")
        self.image, self.label = found, _column(features, "label", label, datasets.ClassLabel)
        kind = features[self.label] if self.label else None
        self.names = tuple(kind.names) if isinstance(kind, datasets.ClassLabel) else None
        self.size, self.resize, self.mode = size, resize, None if color is None else MODES[color]
        first = next(iter(self.raw(part)))
        y = self.y([first])
        self.attributes = y.shape[1] if y is not None and y.ndim == 2 else None
        with self._opened(first) as opened:
            self.mode = self.mode or ("L" if opened.mode in GREY else "RGB")
        self.shape = tuple(self.x(first).shape)

    def raw(self, part: Any) -> Any:
        """Return a part with its pictures as the bytes that they are stored in."""
        import datasets

        kept = [name for name in {self.image: 0, self.label: 0} if name]
        return part.select_columns(kept).cast_column(self.image, datasets.Image(decode=False))

    def _opened(self, row: dict[str, Any]) -> Any:
        stored = row[self.image]
        return open_picture(io.BytesIO(stored["bytes"]) if stored["bytes"] else stored["path"])

    def x(self, row: dict[str, Any]) -> Tensor:
        """Return the picture of a row, [C, H, W] bytes."""
        assert self.mode is not None
        try:
            return picture(self._opened(row), self.size, self.mode, resize=self.resize)
        except Exception as error:
            where = (row[self.image] or {}).get("path") or "one"
            raise UserError(
                f"data.image={self.image}: {where} cannot be read as an image ({first_line(error)})"
            ) from None

    def stacked(self, rows: Sequence[dict[str, Any]]) -> Tensor:
        """Return the pictures of rows, [B, C, H, W].

        Raises:
            UserError: they differ in size.
        """
        x = [self.x(row) for row in rows]
        if other := next((each for each in x if each.shape != x[0].shape), None):
            raise UserError(
                f"data.size: required, pictures differ in size ({list(x[0].shape[1:])}, {list(other.shape[1:])})"
            )
        return torch.stack(x)

    def examples(self, part: Any) -> Examples:
        """Return all examples of a part; the pictures of a part on disk are decoded once and then cached."""
        raw = self.raw(part)
        if not hasattr(part, "num_rows"):  # a stream
            rows = list(raw)
            return Examples(self.stacked(rows), self.y(rows))
        shape = (len(raw), *self.shape)

        def fill(x: Tensor) -> None:
            def work(start: int) -> None:
                rows = [raw[i] for i in range(start, min(start + 256, len(raw)))]
                x[start : start + len(rows)] = self.stacked(rows)

            in_threads(work, range(0, len(raw), 256))

        x = cached(("huggingface", part._fingerprint, self.image, self.size, self.mode, self.resize), shape, fill)
        return Examples(x, self.y(raw.select_columns([self.label])) if self.label else None)

    def y(self, rows: Any) -> Tensor | None:
        """Return the labels of rows."""
        if self.label is None:
            return None
        try:
            found = torch.tensor([row[self.label] for row in rows])
        except (TypeError, ValueError, RuntimeError):  # no numbers
            found = torch.empty(0)
        if self.names is None and found.ndim != 2:
            raise UserError(f"data.label={self.label}: a column of classes (ClassLabel) or attributes is allowed")
        return found.long() if self.names else found.float()


def _column(features: Any, key: str, given: str | None, kind: type) -> str | None:
    if given is None:
        return next((name for name, feature in features.items() if isinstance(feature, kind)), None)
    if given not in features:
        raise UserError(
            f"data.{key}={given}: no such column{suggest(given, features)} (allowed: {', '.join(features)})"
        )
    return given


class Streaming(Feed):
    """Training examples of a data set that is not on disk, or not to be decoded at once.

    Args:
        part: of the data set, to iterate over.
        columns: what its rows become.
        many: how many examples there are.
        readers: parts of an epoch that are read side by side, each through the whole stream.
        buffer: examples in the shuffle buffer of each.
    """

    dtype = torch.uint8

    def __init__(self, part: Any, columns: Columns, many: int, readers: int, buffer: int):
        self.part = part.to_iterable_dataset() if hasattr(part, "num_rows") else part
        self.columns, self.many, self.readers, self.buffer = columns, many, readers, buffer
        self.shape, self.attributes = columns.shape, columns.attributes

    def __len__(self) -> int:
        return self.many

    def read(self, seed: int, epoch: int, part: range, turn: int = 0) -> Iterator[Any]:
        """Yield rows: files in a new order, then mixed in a buffer."""
        mixed = random.Random(f"{seed} {epoch} {turn}").getrandbits(31)
        shuffled = self.columns.raw(self.part).shuffle(seed=mixed, buffer_size=self.buffer)
        return iter(shuffled.skip(part.start).take(len(part)))

    def decode(self, raw: Sequence[Any]) -> Examples:
        """Return rows as examples."""
        return Examples(self.columns.stacked(raw), self.columns.y(raw))

    def bounds(self) -> tuple[float, float]:
        """Return the range of grey levels."""
        return 0.0, 255.0

    def std_mean(self) -> tuple[Tensor, Tensor]:
        """Grey levels are not standardised."""
        raise NotImplementedError

    def standardized(self, mean: Tensor, std: Tensor) -> Feed:
        """Grey levels are not standardised."""
        raise NotImplementedError
