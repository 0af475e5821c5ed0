"""WebDataset shards: tar files of examples, read in sequence, so that a set of any size trains from any storage.

A sample is a picture (png, jpg, …) or an array (npy), with a label in cls (a class) or json (a class, attributes, or
{"label": …}); or a block of small examples, x.npy [B, *shape] with y.npy [B] or [B, A].
"""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vae_cli.config.types import COMMAND, Color, Count, Frame, OnBroken, Resize
from vae_cli.data.decoding import frame, refuse_resize_alone
from vae_cli.data.examples import Splits
from vae_cli.data.webdataset.feed import Shards
from vae_cli.data.webdataset.index import NAME, Index, read_index
from vae_cli.data.webdataset.reader import Broken, Reader
from vae_cli.system.errors import UserError, first_line

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
    """Return the texts that a pattern with {000..123} and {a,b} expands to.

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
    """Return how many texts a pattern expands to, without making them; lists within lists count as more."""
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
