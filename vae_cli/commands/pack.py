"""vae-data pack: any data we read, as WebDataset shards and an index.json. torch is imported late."""

from __future__ import annotations

import hashlib
import io
import json
import math
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_cli.commands.shared import exit_on_error, guarded, import_torch, own_folders, refuse_misused
from vae_cli.config import check_part, words
from vae_cli.config.check import check
from vae_cli.config.commands import Pack
from vae_cli.config.types import Part as Data
from vae_cli.config.words import CONF
from vae_cli.data.webdataset.index import NAME, Index, Shard, read_index, write_index
from vae_cli.system.disk import Unwritable, whole
from vae_cli.system.errors import UserError

if TYPE_CHECKING:
    import torch

    from vae_cli.data.examples import Examples, Splits

    Job = tuple[Shard, Examples, torch.Tensor]  # a shard, what it is of, and the rows [B] that it holds

FORK = "fork" if "fork" in multiprocessing.get_all_start_methods() else None  # examples need not be sent
PLAN = "index.json.begun"  # what is being packed, until it is whole
BLOCK = 2**16  # bytes of small examples that make up one sample
PICTURE = 2**12  # elements from which a picture is a sample of its own
SOURCE = {"binarize": "none", "dequantize": False, "standardize": False, "missing": "refused"}  # as the source gives it


def main() -> None:
    """Run vae-data; print errors as one line and exit with 1."""
    words.use("pack")

    def body() -> None:
        if sys.argv[1:2] == ["pack"]:
            del sys.argv[1]
        elif "--help" not in sys.argv and "-h" not in sys.argv:
            raise UserError(f"{' '.join(sys.argv[1:2])}: no such command; vae-data pack data=… out=… is allowed")
        refuse_misused(sys.argv[1:])
        application()

    guarded("vae-data", body)


@hydra.main(version_base="1.3", config_path=CONF, config_name="pack")
def application(composed: DictConfig) -> None:
    """Pack what the settings say."""
    with exit_on_error("vae-data"):
        raw: Any = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
        own_folders()
        import_torch()
        data = check_part("data", {**raw, "data": {**raw["data"], **SOURCE}})
        pack(check(Pack, {key: value for key, value in raw.items() if key != "data"}, ""), data)


def pack(settings: Pack, data: Data) -> Index:
    """Write the shards of a data set that are not there yet, then their index, and return it.

    Raises:
        UserError: the folder holds something else, or the data come in sequence.
    """
    from vae_cli.system.machine import usable_threads

    if find_spec("webdataset") is None:
        raise UserError("vae-data pack: needs webdataset; pip install 'vae-cli[shards]'")
    splits = _splits(data)
    out = Path(settings.out)
    index = _plan(settings, data, splits)
    _claim(out, index)
    for note in splits.notes:
        print(f"warning: {note}", file=sys.stderr)
    began, jobs = time.perf_counter(), list(_jobs(index, splits, data.seed))
    left = [job for job in jobs if not (out / job[0].file).is_file()]
    if len(left) < len(jobs):
        print(f"{len(jobs) - len(left)} of {len(jobs)} shards are there already")
    _in_parallel(out, index, left, settings.workers or usable_threads())
    write_index(index, out / NAME)
    (out / PLAN).unlink(missing_ok=True)
    size = sum((out / shard.file).stat().st_size for shard, *_ in jobs)
    print(f"{len(jobs)} shards, {size / 2**20:,.1f} MiB, {time.perf_counter() - began:.1f} s")
    print(f"vae-train data=shards data.path={out}")
    return index


def _splits(data: Data) -> Splits:
    """Return the examples of a data set as a training run would split them.

    Raises:
        UserError: they come in sequence.
    """
    from vae_cli.data.dataset import limited
    from vae_cli.data.examples import Feed, carve
    from vae_cli.parts import assemble, name_of

    if data.missing != "refused":
        raise UserError(f"data.missing={data.missing}: shards hold no missing values; refused is allowed")
    splits = carve(assemble("data", data), valid=data.valid or 0, test=data.test, seed=data.seed)
    if isinstance(splits.train, Feed):
        raise UserError(f"data={name_of('data', data)}: a stream has no examples to choose from; data.streaming=false, "
                        "or another source is allowed")  # fmt: skip
    return limited(splits, data.limit, data.limit_train, data.seed)


def _parts(splits: Splits) -> dict[str, Examples]:
    parts: dict[str, Any] = {"train": splits.train, "valid": splits.valid, "test": splits.test}
    return {split: part for split, part in parts.items() if part is not None}


def _plan(settings: Pack, data: Data, splits: Splits) -> Index:
    """Return the index that the shards will have: everything but the files is known before."""
    parts = _parts(splits)
    train = parts["train"]
    names = list(splits.names) if splits.names else None
    shown = json.dumps({"data": data.model_dump(by_alias=True, mode="json"), "format": _format(settings, splits)})
    low, high = zip(*(part.bounds() for part in parts.values()), strict=True)
    moments: dict[str, Any] = {}
    if splits.levels is None:
        std, mean = train.std_mean()
        moments = {"mean": mean.flatten().tolist(), "std": std.flatten().tolist()}
    most = max(1, int(settings.megabytes * 2**20 / (train.x[:1].nbytes + 1)))
    return Index(
        source=f"{shown} {_fingerprint(train)}",
        shape=list(train.shape),
        levels=splits.levels,
        whole=splits.whole,
        names=names,
        labels=names and [str(k) for k in range(len(names))],
        attributes=train.attributes,
        low=min(low) if splits.levels is None else 0.0,
        high=max(high) if splits.levels is None else 1.0,
        **moments | {split: _shards(split, len(part), most) for split, part in parts.items()},
    )


def _shards(split: str, n: int, most: int) -> list[Shard]:
    """Return the shards of n examples: equal in size, no more than `most` in each."""
    count = -(-n // most)
    ends = [k * n // count for k in range(count + 1)]
    return [Shard(file=f"{split}-{k:06d}.tar", examples=ends[k + 1] - ends[k]) for k in range(count)]


def _format(settings: Pack, splits: Splits) -> str:
    """Return how examples are stored.

    Raises:
        UserError: they are no pictures that a PNG could hold.
    """
    shape = _parts(splits)["train"].shape
    able = splits.levels == 256 and (len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3)))
    if settings.format == "png" and not able:
        raise UserError(
            f"format=png: examples of shape {list(shape)} and {splits.levels or 'no'} grey levels; npy is allowed"
        )
    if settings.format != "auto":
        return settings.format
    return "png" if able and math.prod(shape) >= PICTURE else "npy"


def _fingerprint(examples: Examples) -> str:
    """Return a checksum of some examples: the same settings may find other files later."""
    rows = slice(0, None, max(1, len(examples) // 64))
    import torch

    return hashlib.sha256(examples.x[torch.arange(len(examples))[rows]].numpy().tobytes()).hexdigest()[:16]


def _claim(out: Path, index: Index) -> None:
    """Take a folder for a set of shards: a new or an empty one, or one in which the same set was begun.

    Raises:
        UserError: it holds something else.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        there = next((out / name for name in (NAME, PLAN) if (out / name).is_file()), None)
        if there is None:
            raise UserError(f"out={out}: holds something already; a new or empty folder is allowed")
        if read_index(there, f"out={out}") != index:
            raise UserError(f"out={out}: holds shards of other data or settings; another folder is allowed")
    out.mkdir(parents=True, exist_ok=True)
    write_index(index, out / PLAN)


def _jobs(index: Index, splits: Splits, seed: int) -> Iterator[Job]:
    """Yield each shard with the examples it is of, and which: training examples in a random order, others in theirs."""
    import torch

    from vae_cli.data.examples import counting

    for split, part in _parts(splits).items():
        kind, generator = counting(len(part)), torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(len(part), generator=generator, dtype=kind) if split == "train" else None
        rows, start = torch.arange(len(part), dtype=kind) if shuffled is None else shuffled, 0
        for shard in getattr(index, split):
            yield shard, part, rows[start : start + shard.examples]
            start += shard.examples


def _in_parallel(out: Path, index: Index, jobs: list[Job], workers: int) -> None:
    """Write shards in processes of torch's loader, and tell of each that is there.

    Raises:
        UserError: there is no room for one.
    """
    from torch.utils.data import DataLoader, Dataset

    class Shards(Dataset):
        def __len__(self) -> int:
            return len(jobs)

        def __getitem__(self, k: int) -> str:
            return _written(out, index, *jobs[k])

    many = min(workers, len(jobs)) if workers > 1 else 0
    with warnings.catch_warnings():  # of more processes than cores: they were asked for
        warnings.filterwarnings("ignore", "This DataLoader will create")
        lines = iter(DataLoader(Shards(), None, num_workers=many, multiprocessing_context=FORK if many else None))
    for line in lines:
        if line.startswith("error: "):
            raise UserError(line.removeprefix("error: "))
        print(line)


def _written(out: Path, index: Index, shard: Shard, examples: Examples, rows: torch.Tensor) -> str:
    try:
        _write(out, index, shard, examples, rows)
    except Unwritable as error:
        return f"error: {error}"
    return f"{out / shard.file}: {shard.examples:,} examples"


def _write(out: Path, index: Index, shard: Shard, examples: Examples, rows: torch.Tensor) -> None:
    """Write a shard, whole or not at all."""
    import webdataset

    samples = _pictures if '"format": "png"' in index.source else _blocks
    with (
        whole(out / shard.file) as partial,
        partial.open("wb") as file,
        webdataset.TarWriter(file, encoder=False, mtime=0.0) as archive,
    ):
        for sample in samples(examples, rows):
            archive.write(sample)


def _pictures(examples: Examples, rows: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Yield a PNG and a label for each example."""
    from PIL import Image

    for k, row in enumerate(rows.split(1)):
        x, file = examples.x[row][0].numpy(), io.BytesIO()
        picture = x if x.ndim == 2 else x[0] if len(x) == 1 else x.transpose(1, 2, 0)
        Image.fromarray(picture).save(file, "PNG", compress_level=1)
        sample: dict[str, Any] = {"__key__": f"{k:08d}", "png": file.getvalue()}
        if examples.y is not None:
            y = examples.y[row][0]
            sample |= {"json": json.dumps(y.tolist()).encode()} if y.ndim else {"cls": str(int(y)).encode()}
        yield sample


def _blocks(examples: Examples, rows: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Yield arrays of as many examples as make a read worth its while."""
    for k, block in enumerate(rows.split(max(1, BLOCK // examples.x[:1].nbytes))):
        sample = {"__key__": f"{k:08d}", "x.npy": _npy(examples.x[block])}
        yield sample if examples.y is None else sample | {"y.npy": _npy(examples.y[block])}


def _npy(tensor: torch.Tensor) -> bytes:
    import numpy as np

    file = io.BytesIO()
    np.save(file, tensor.numpy(), allow_pickle=False)
    return file.getvalue()


if __name__ == "__main__":
    main()
