"""Data larger than memory are the same examples, in the same order, with the same numbers."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import configure, train
from vae_cli import parts
from vae_cli.commands.pack import pack
from vae_cli.config.commands import Pack
from vae_cli.data import arrays, npy
from vae_cli.data.batches import cache
from vae_cli.data.batches.mapped import Mapped
from vae_cli.data.batches.resident import Resident, Streamed
from vae_cli.data.webdataset import reader
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError

CPU = torch.device("cpu")
FEW_STEPS = ["model.latent_dim=4", "trainer.steps=6", "trainer.log_every=1", "trainer.batch_size=16"]
FEW_STEPS += ["trainer.log_likelihood_samples=0", "trainer.final_samples=1"]
RNG = np.random.default_rng(0)
ARRAYS = {
    "grey": RNG.integers(0, 256, (90, 6, 5)).astype("uint8"),
    "colour_last": RNG.integers(0, 256, (90, 6, 5, 3)).astype("uint8"),
    "bytes_of_bits": RNG.integers(0, 2, (90, 7)).astype("uint8"),
    "bytes_of_codes": RNG.integers(0, 12, (90, 7)).astype("uint8"),
    "whole_pictures": RNG.integers(0, 12, (90, 6, 5)).astype("int64"),
    "counts": RNG.integers(0, 12, (90, 7)).astype("int64"),
    "bits": RNG.integers(0, 2, (90, 6, 5)).astype("bool"),
    "floats_of_bits": RNG.integers(0, 2, (90, 6, 5)).astype("float64"),
    "unit": RNG.random((90, 6, 5)).astype("float32"),
    "table": (RNG.normal(size=(90, 7)) * 5 + 3).astype("float64"),
}


def dataset(*overrides):
    return parts.load_dataset(configure("likelihood=gaussian", *overrides))


@pytest.fixture
def in_files(monkeypatch, tmp_path):
    """Whatever is read or made is in a file, and in parts of a few examples."""
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    for module in (npy, cache):
        monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr("vae_cli.data.batches.mapped.CHUNK", 1000)
    monkeypatch.setattr(arrays, "CHUNK", 1000)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_a_file_is_the_array_in_memory(name, tmp_path, in_files):
    np.save(tmp_path / "x.npy", ARRAYS[name])
    np.savez(tmp_path / "x.npz", x=ARRAYS[name])
    mapped, memory = (dataset("data=arrays", f"data.path={tmp_path}/x.{kind}") for kind in ("npy", "npz"))
    assert isinstance(mapped.train.x, Mapped)
    assert (mapped.spec.shape, mapped.spec.levels) == (memory.spec.shape, memory.spec.levels)
    assert (mapped.taken, mapped.notes) == (memory.taken, memory.notes)
    assert mapped.spec.low == pytest.approx(memory.spec.low, abs=1e-5)
    assert mapped.spec.high == pytest.approx(memory.spec.high, abs=1e-5)
    assert mapped.spec.mean == (memory.spec.mean and pytest.approx(memory.spec.mean, rel=1e-5))
    for split in ("train", "valid", "test"):
        ours, theirs = mapped.resident(split, CPU), memory.resident(split, CPU)
        assert (type(ours), type(theirs)) == (Streamed, Resident)
        assert torch.equal(ours.order(1, 2), theirs.order(1, 2))
        index = ours.order(3, 4)[:7]
        torch.testing.assert_close(ours.batch(index)[0], theirs.batch(index)[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.batch(slice(2, 5))[0], theirs.batch(slice(2, 5))[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        mapped.fixed_train(CPU, 20, seed=0).batch(slice(0, 20)), memory.fixed_train(CPU, 20, seed=0).batch(slice(0, 20))
    )


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_training_from_a_file_has_the_numbers_of_training_from_memory(likelihood, tmp_path, in_files):
    np.save(tmp_path / "x.npy", ARRAYS["grey"])
    np.save(tmp_path / "y.npy", np.arange(90) % 3)
    np.savez(tmp_path / "x.npz", x=ARRAYS["grey"], y=np.arange(90) % 3)
    common = ["data=arrays", "conditional=label", f"likelihood={likelihood}", *FEW_STEPS]
    labels = f"data.labels={tmp_path}/y.npy"
    one = train(tmp_path / "file", *common, f"data.path={tmp_path}/x.npy", labels)
    other = train(tmp_path / "memory", *common, f"data.path={tmp_path}/x.npz")
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("file", "memory")]
    assert len(lines[0]) == len(lines[1]) > 6
    timed = ("train_seconds", "examples_per_second")
    assert {k: v for k, v in one.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}
    assert "data streamed" in (tmp_path / "file" / "train.log").read_text()


def test_a_file_may_be_read_into_memory_and_not_where_it_does_not_fit(tmp_path, in_files, monkeypatch):
    np.save(tmp_path / "x.npy", ARRAYS["grey"])
    data = dataset("data=arrays", f"data.path={tmp_path}/x.npy")
    resident = data.resident("train", CPU, True)
    assert (type(resident), type(resident.examples.x)) == (Resident, torch.Tensor)
    index = torch.tensor([5, 3, 11])
    assert torch.equal(resident.batch(index)[0], data.resident("train", CPU).batch(index)[0])
    monkeypatch.setattr("vae_cli.data.batches.resident.free_memory", lambda: 100)
    with pytest.raises(UserError, match=r"trainer\.resident=true: the examples need .* auto or false is allowed"):
        data.resident("train", CPU, True)


def test_fixed_draws_of_large_parts_are_kept_in_a_file_that_goes_again(tmp_path, in_files):
    np.save(tmp_path / "x.npy", ARRAYS["grey"])
    settings = ["data=arrays", f"data.path={tmp_path}/x.npy", "data.binarize=static", "likelihood=bernoulli"]
    data = dataset(*settings)
    assert list((tmp_path / "cache").iterdir()) == []
    assert set(data.train.x[:].unique().tolist()) == {0, 1}
    assert torch.equal(dataset(*settings).valid.x, data.valid.x)


def test_where_a_large_part_cannot_be_kept_is_told(in_files, monkeypatch):
    monkeypatch.setenv("VAE_CACHE", "/proc/nowhere")
    with pytest.raises(UserError, match=r"VAE_CACHE=/proc/nowhere: .* GiB cannot be kept there"):
        dataset("data.binarize=static", "likelihood=bernoulli")


BAD = {
    "nan": (np.where(np.arange(40)[:, None] == 33, np.nan, RNG.random((40, 7))), r"first in example 33"),
    "text": (np.array([["a"], ["b"]]), r"examples of type <U1; numbers are allowed"),
    "one_dimension": (np.arange(90.0), r"examples of shape \[90\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_array_in_a_file_is_refused(name, tmp_path, in_files):
    content, message = BAD[name]
    np.save(tmp_path / "bad.npy", content)
    with pytest.raises(UserError, match=rf"data\.path=.*bad\.npy: .*{message}"):
        dataset("data=arrays", f"data.path={tmp_path}/bad.npy")


def test_labels_beside_an_array_are_checked(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["grey"])
    np.save(tmp_path / "y.npy", np.arange(89))
    np.savez(tmp_path / "both.npz", x=ARRAYS["grey"], y=np.arange(90))
    path = f"data.path={tmp_path}/x.npy"
    with pytest.raises(UserError, match=r"90 examples in `x` but 89 labels"):
        dataset("data=arrays", path, f"data.labels={tmp_path}/y.npy")
    with pytest.raises(UserError, match=r"data\.labels=.*absent\.npy: no such file"):
        dataset("data=arrays", path, f"data.labels={tmp_path}/absent.npy")
    with pytest.raises(UserError, match=r"data\.labels=.*: has no effect, .*both\.npz holds labels `y`"):
        dataset("data=arrays", f"data.path={tmp_path}/both.npz", f"data.labels={tmp_path}/y.npy")


def test_a_file_that_was_cut_short_is_told(tmp_path, in_files):
    np.save(tmp_path / "x.npy", ARRAYS["grey"])
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or cut short"):
        dataset("data=arrays", f"data.path={tmp_path}/x.npy")


def packed(out, *overrides, **settings):
    """Pack the data of a configuration, in shards of some 20 examples."""
    data = configure("likelihood=gaussian", *overrides).data
    chosen = {"out": str(out), "megabytes": 0.0006, "format": "npy", "workers": 2} | settings
    return pack(Pack(**chosen), data)


def of_shards(folder, *overrides):
    return dataset("data=shards", f"data.path={folder}", *overrides)


def epoch(stream, seed, epoch, size):
    """The batches of an epoch, as the trainer asks for them."""
    order = stream.order(seed, epoch)[: len(stream) // size * size].split(size)
    for k, index in enumerate(order):
        if k + 1 < len(order):
            stream.prefetch(order[k + 1])
        yield stream.batch(index)


def members(x):
    return sorted(tuple(row.flatten().tolist()) for row in x)


SYNTHETIC = ["data=synthetic", "data.n=130", "data.shape=[5,6]"]


def test_shards_hold_the_examples_that_were_packed_and_an_epoch_each_of_them_once(tmp_path):
    index = packed(tmp_path, *SYNTHETIC)
    assert len(index.train) > 4
    source, data = dataset(*SYNTHETIC), of_shards(tmp_path, "data.readers=3", "data.buffer=30")
    assert (data.spec, data.sizes) == (source.spec, source.sizes)
    for split in ("valid", "test"):
        found, wanted = getattr(data, split), getattr(source, split)
        assert torch.equal(found.x, wanted.x)
        assert torch.equal(found.y, wanted.y)
    wanted = members(source.resident("train", CPU).batch(slice(0, 999))[0])
    stream, orders = data.resident("train", CPU), []
    for n in range(2):
        x = torch.cat([batch.x for batch in epoch(stream, 1, n, len(stream) // 8)])
        assert len(x) == len(stream)
        assert members(x) == wanted
        orders.append(x)
    assert not torch.equal(*orders)
    again = torch.cat([batch.x for batch in epoch(data.resident("train", CPU), 1, 0, len(stream) // 8)])
    assert torch.equal(again, orders[0])
    x, y, _ = next(epoch(stream, 1, 0, 8))
    of = {
        tuple(x.flatten().tolist()): int(y)
        for x, y in zip(*source.resident("train", CPU).batch(slice(0, 999))[:2], strict=True)
    }
    assert [of[tuple(row.flatten().tolist())] for row in x] == y.tolist()


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_read_the_global_batches_each_from_its_own_shards(ranks, tmp_path, monkeypatch):
    packed(tmp_path, *SYNTHETIC)
    one = [batch.x for batch in epoch(of_shards(tmp_path).resident("train", CPU), 3, 1, 8)]
    monkeypatch.setattr("vae_cli.system.parallel.count", lambda: ranks)
    touched, own = [], reader.Reader.samples
    monkeypatch.setattr(reader.Reader, "samples", lambda self, url, n: (touched.append(url), own(self, url, n))[1])
    shares, opened = [], []
    for rank in range(ranks):
        stream = of_shards(tmp_path).resident("train", CPU)
        touched.clear()
        order = stream.order(3, 1)[: len(one) * 8].split(8)
        shares.append([stream.batch(index.narrow(0, rank * 8 // ranks, 8 // ranks))[0] for index in order])
        opened.append(set(touched))
    for k, whole in enumerate(one):
        assert torch.equal(torch.cat([share[k] for share in shares]), whole)
    assert all(len(one) < len(set.union(*opened)) for one in opened)


def test_readers_that_ranks_cannot_share_are_refused(tmp_path, monkeypatch):
    packed(tmp_path, *SYNTHETIC)
    monkeypatch.setattr("vae_cli.system.parallel.count", lambda: 3)
    stream = of_shards(tmp_path).resident("train", CPU)
    with pytest.raises(UserError, match=r"data\.readers=4: a multiple of the 3 ranks is allowed"):
        stream.batch(stream.order(1, 0)[:4])


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_a_run_on_shards_goes_on_within_an_epoch_to_the_bit(likelihood, tmp_path):
    packed(tmp_path / "shards", *SYNTHETIC)
    settings = ["data=shards", f"data.path={tmp_path}/shards", f"likelihood={likelihood}", "data.buffer=40", *FEW_STEPS]
    train(tmp_path / "whole", *settings, "trainer.steps=11")
    train(tmp_path / "parts", *settings, "trainer.steps=9")
    train(tmp_path / "parts", *settings, "trainer.steps=11", resume=True)
    one, other = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    assert one["step"] == other["step"] == 11
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())


def test_tables_are_standardised_by_what_the_index_says(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["table"])
    path = ["data=arrays", f"data.path={tmp_path}/x.npy"]
    packed(tmp_path / "shards", *path)
    source, data = dataset(*path), of_shards(tmp_path / "shards")
    assert data.spec.mean == pytest.approx(source.spec.mean)
    assert data.spec.std == pytest.approx(source.spec.std)
    x = torch.cat([batch.x for batch in epoch(data.resident("train", CPU), 1, 0, len(data.train))])
    torch.testing.assert_close(x.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
    assert data.spec.low <= x.min() < x.max() <= data.spec.high
    scanned = dataset("data=shards", f"data.path='{tmp_path}/shards/train-{{000000..000002}}.tar'")
    assert scanned.spec.mean is not None


def as_npy(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["packed", "samples", "blocks"])
def test_a_table_of_whole_numbers_is_one_of_its_own_values_in_shards_too(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    x = ARRAYS["counts"]
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "shards").mkdir()
    if kind == "packed":
        packed(tmp_path / "shards", "data=arrays", f"data.path={tmp_path}/x.npy", "data.test=0", "data.valid=0")
    else:
        samples = [{"npy": as_npy(row)} for row in x] if kind == "samples" else [{"x.npy": as_npy(x)}]
        write_shard(tmp_path / "shards" / "a.tar", samples)
    data = of_shards(tmp_path / "shards")
    assert (data.spec.levels, data.taken) == (None, "real values")
    assert data.spec.mean == pytest.approx(x.mean(0).tolist(), rel=1e-5)
    stream = of_shards(tmp_path / "shards", "data.standardize=false").resident("train", CPU)
    seen = torch.cat([batch.x for batch in epoch(stream, 1, 0, 90)])
    assert sorted(map(tuple, seen.tolist())) == sorted(map(tuple, x.astype(float).tolist()))


def test_whole_numbers_in_pictures_are_grey_levels_in_shards_too(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    x = RNG.integers(0, 17, (30, 6, 5))
    x[0, 0, 0] = 16
    write_shard(tmp_path / "a.tar", [{"npy": as_npy(picture)} for picture in x])
    write_shard(tmp_path / "valid.tar", [{"npy": as_npy(picture + 1)} for picture in x])
    data = of_shards(tmp_path / "a.tar")
    assert (data.spec.levels, data.taken) == (17, "grey levels")
    batch = data.resident("train", CPU).batch(torch.arange(30)).x
    assert sorted(set((batch * 16).flatten().tolist())) == list(range(17))
    with pytest.raises(UserError, match=r"whole numbers from 1 to 17 where 0 … 16 are expected"):
        of_shards(tmp_path / "a.tar", f"data.valid_path={tmp_path}/valid.tar")


PHOTOS = {"grey": (1, "grayscale"), "colour": (3, "rgb")}


@pytest.mark.parametrize("name", PHOTOS)
def test_pictures_are_packed_without_loss(name, tmp_path):
    channels, color = PHOTOS[name]
    for k in range(12):
        folder = tmp_path / "photos" / ("cat" if k % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        picture = RNG.integers(0, 256, (70, 70, channels)).astype("uint8").squeeze()
        Image.fromarray(picture).save(folder / f"{k}.png")
    path = ["data=images", f"data.path={tmp_path}/photos", f"data.color={color}", "data.valid=2", "data.test=2"]
    index = packed(tmp_path / "shards", *path, format="auto")
    assert "png" in index.source
    source, data = dataset(*path), of_shards(tmp_path / "shards")
    assert data.spec == source.spec
    assert data.spec.names == ("cat", "dog")
    assert torch.equal(data.test.x, source.test.x)
    x = torch.cat([batch.x for batch in epoch(data.resident("train", CPU), 1, 0, 4)])
    assert members(x) == members(source.resident("train", CPU).batch(slice(0, 99))[0])
    small = of_shards(tmp_path / "shards", "data.size=16", "data.color=grayscale")
    assert small.spec.shape == (1, 16, 16)


def write_shard(path, samples):
    import webdataset

    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0.0) as archive:
        for k, sample in enumerate(samples):
            archive.write({"__key__": f"{k:04d}", **sample})


def png(value, shape=(8, 8, 3)):
    file = io.BytesIO()
    Image.fromarray(np.full(shape, value, "uint8")).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def foreign_shards(tmp_path, monkeypatch):
    """Three shards without an index: pictures of one colour, whose class is the colour."""
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    for k in range(3):
        write_shard(
            tmp_path / f"set-{k:03d}.tar", [{"png": png(10 * k + n), "cls": str(n % 3).encode()} for n in range(10)]
        )
    return tmp_path


def test_shards_without_an_index_are_read_once_to_find_out(foreign_shards, monkeypatch):
    settings = ["data=shards", f"data.path='{foreign_shards}/set-{{000..001}}.tar'"]
    settings += [f"data.valid_path={foreign_shards}/set-002.tar"]
    data = dataset(*settings)
    assert (data.spec.shape, data.spec.levels, data.spec.names) == ((3, 8, 8), 256, ("0", "1", "2"))
    assert data.sizes == {"train": 20, "valid": 10}
    assert data.valid.x[:, 0, 0, 0].tolist() == list(range(20, 30))
    assert data.valid.y.tolist() == [n % 3 for n in range(10)]
    monkeypatch.setattr(reader.Reader, "_scan", None)
    assert dataset(*settings).sizes == data.sizes


def test_attributes_and_arrays_in_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    file = io.BytesIO()
    np.save(file, np.arange(6, dtype="float64").reshape(2, 3))
    write_shard(tmp_path / "a.tar", [{"npy": file.getvalue(), "json": b'{"label": [0.5, 1, 0]}'}] * 5)
    data = of_shards(tmp_path)
    assert (data.spec.shape, data.spec.levels, data.spec.attributes) == ((2, 3), None, 3)
    stream = of_shards(tmp_path, "data.standardize=false").resident("train", CPU)
    x, y, _ = stream.batch(stream.order(1, 0))
    assert x[4].flatten().tolist() == list(range(6))
    assert y[0].tolist() == [0.5, 1.0, 0.0]


@pytest.mark.parametrize("damage", ["cut", "noise", "picture", "label"])
def test_a_broken_shard_is_named_and_skipped_only_where_that_is_asked(damage, foreign_shards, capfd):
    path = foreign_shards / "set-001.tar"
    settings = ["data=shards", f"data.path='{foreign_shards}/set-{{000..002}}.tar'", "data.readers=2"]
    dataset(*settings)  # what it held is known
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:6000])
    elif damage == "noise":
        path.write_bytes(b"no archive" * 999)
    else:
        bad = {"png": b"no picture", "cls": b"1"} if damage == "picture" else {"png": png(3), "json": b"{"}
        write_shard(path, [{"png": png(1), "cls": b"1"}, bad])
    with pytest.raises(UserError, match=r"set-001\.tar is broken \(.*\); data\.on_broken=skip goes on without it"):
        list(epoch(dataset(*settings).resident("train", CPU), 1, 0, 4))
    data = dataset(*settings, "data.on_broken=skip")
    batches = list(epoch(data.resident("train", CPU), 1, 0, 4))
    assert all(len(batch.x) == 4 for batch in batches)
    told = capfd.readouterr().err.splitlines()
    assert len([line for line in told if "set-001.tar is broken" in line]) >= 1
    again = list(epoch(data.resident("train", CPU), 1, 0, 4))
    assert all(torch.equal(a.x, b.x) for a, b in zip(batches, again, strict=True))


def test_an_index_of_another_shape_than_its_shards_is_refused_before_a_model_is_built(tmp_path):
    index = packed(tmp_path, *SYNTHETIC)
    (tmp_path / "index.json").write_text(
        index.model_copy(update={"shape": [1_500_000], "valid": [], "test": []}).model_dump_json()
    )
    with pytest.raises(UserError, match=r"where \[1500000\] torch.uint8 is expected"):
        parts.load_dataset(configure("data=shards", f"data.path={tmp_path}"))


def test_a_shard_that_holds_less_than_its_index_says_is_broken(tmp_path):
    index = packed(tmp_path, *SYNTHETIC)
    first, second = (tmp_path / shard.file for shard in index.train[:2])
    write_shard(first, [])
    stream = of_shards(tmp_path, "data.readers=1").resident("train", CPU)
    with pytest.raises(UserError, match=rf"{first.name} is broken \(it holds 0 examples, not"):
        list(epoch(stream, 1, 0, 8))
    second.unlink()
    with pytest.raises(UserError, match=rf"{second.name} is broken \(it is not there\)"):
        of_shards(tmp_path)


def test_wrong_settings_of_shards_get_a_line(tmp_path, foreign_shards, monkeypatch):
    for path, message in (
        ("s3://bucket/{0..3}.tar", r"data\.path=s3://.*: local paths and pipe:COMMAND .* are allowed"),
        (f"{tmp_path}/absent-{{0..3}}.tar", r"absent-0\.tar is not there"),
        (str(tmp_path / "cache"), r"no shards in it|is not there"),
    ):
        with pytest.raises(UserError, match=message):
            dataset("data=shards", f"data.path='{path}'")
    with pytest.raises(UserError, match=r"data\.binarize=static: draws once"):
        of_shards(foreign_shards, "data.binarize=static", "likelihood=bernoulli")
    (tmp_path / "index.json").write_text('{"shape": [8]}')
    with pytest.raises(UserError, match=r"data\.path=.*index\.json is no index of shards \(levels: Field required\)"):
        of_shards(foreign_shards)
    monkeypatch.setattr("vae_cli.data.shards.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"data=shards: needs webdataset; pip install 'vae-cli\[shards\]'"):
        of_shards(foreign_shards)


def test_an_index_from_elsewhere_leads_nowhere_else(tmp_path):
    index = packed(tmp_path, *SYNTHETIC).model_dump_json()
    for name in ("../other.tar", "/etc/passwd", "pipe:touch x", ".hidden"):
        (tmp_path / "index.json").write_text(index.replace("train-000000.tar", name))
        with pytest.raises(UserError, match="a plain file name is allowed"):
            of_shards(tmp_path)


def test_a_command_gives_shards(foreign_shards):
    data = dataset("data=shards", f"data.path='pipe:cat {foreign_shards}/set-{{000..002}}.tar'", "data.readers=2")
    assert data.sizes == {"train": 30}
    assert sum(len(batch.x) for batch in epoch(data.resident("train", CPU), 1, 0, 10)) == 30
    with pytest.raises(UserError, match=r"pipe:cat .*absent\.tar 2>&1 is broken"):
        dataset("data=shards", f"data.path='pipe:cat {foreign_shards}/absent.tar 2>&1'")


def test_packing_goes_on_where_it_was_interrupted(tmp_path, capsys):
    index = packed(tmp_path, *SYNTHETIC)
    whole = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    lost, kept = tmp_path / index.train[2].file, tmp_path / index.train[1].file
    lost.unlink()
    (tmp_path / "index.json").rename(tmp_path / "index.json.begun")
    written = kept.stat().st_mtime_ns
    capsys.readouterr()
    packed(tmp_path, *SYNTHETIC)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{len(whole) - 2} of {len(whole) - 1} shards are there already"
    assert lines[1].endswith(f"{lost.name}: {index.train[2].examples} examples")
    assert kept.stat().st_mtime_ns == written
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == whole


def test_packing_refuses_a_folder_of_something_else(tmp_path):
    packed(tmp_path / "shards", *SYNTHETIC)
    with pytest.raises(UserError, match=r"out=.*shards: holds shards of other data or settings"):
        packed(tmp_path / "shards", *SYNTHETIC, "data.seed=3")
    with pytest.raises(UserError, match=r"out=.*: holds something already"):
        packed(tmp_path, *SYNTHETIC)
    np.save(tmp_path / "x.npy", ARRAYS["table"])
    with pytest.raises(UserError, match=r"format=png: examples of shape \[7\] and no grey levels; npy is allowed"):
        packed(tmp_path / "png", "data=arrays", f"data.path={tmp_path}/x.npy", format="png")
    with pytest.raises(UserError, match=r"data=shards: a stream has no examples to choose from"):
        packed(tmp_path / "again", "data=shards", f"data.path={tmp_path}/shards")


def test_the_command_packs(tmp_path):
    def data(*arguments):
        line = [sys.executable, "-m", "vae_cli.commands.pack", *arguments]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)

    done = data("pack", "data=synthetic", "data.n=100", "out=shards")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "vae-train data=shards data.path=shards"
    assert (tmp_path / "shards" / "train-000000.tar").is_file()
    for arguments, line in (
        (("pak",), "pak: no such command; vae-data pack data=… out=… is allowed"),
        (("pack", "out=a", "format=jpg"), "format=jpg: 'auto', 'png' or 'npy' is allowed"),
    ):
        done = data(*arguments)
        assert (done.returncode, done.stderr.splitlines()) == (1, [f"vae-data: error: {line}"])


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A data set of pictures and classes: saved to disk, as parquet files, and as a folder of pictures."""
    import datasets

    datasets.disable_progress_bars()
    root, rng = tmp_path_factory.mktemp("hub"), np.random.default_rng(1)
    parts = {}
    for split, count in (("train", 40), ("test", 8)):
        pictures = [rng.integers(0, 256, (9, 10, 3)).astype("uint8") for _ in range(count)]
        columns = {"image": [Image.fromarray(x) for x in pictures], "label": [k % 2 for k in range(count)]}
        features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
        (root / "parquet").mkdir(exist_ok=True)
        parts[split].to_parquet(str(root / "parquet" / f"{split}-00000.parquet"))
        for k, x in enumerate(pictures):
            folder = root / "folder" / split / ("dog" if k % 2 else "cat")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x).save(folder / f"{k:03d}.png")
    datasets.DatasetDict(parts).save_to_disk(str(root / "saved"))
    return root


@pytest.fixture
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def on_hub(path, *overrides):
    return dataset("data=huggingface", f"data.path={path}", *overrides)


@pytest.mark.parametrize("kind", ["saved", "parquet", "folder"])
def test_a_data_set_in_a_format_of_the_hub(kind, hub, offline):
    data = on_hub(hub / kind, "data.valid=10")
    assert (data.spec.shape, data.spec.levels, data.spec.names) == ((3, 9, 10), 256, ("cat", "dog"))
    assert data.sizes == {"train": 30, "valid": 10, "test": 8}
    wanted = np.stack([np.asarray(Image.open(path)) for path in sorted((hub / "folder" / "test").rglob("*.png"))])
    assert members(data.test.x) == members(torch.from_numpy(wanted).permute(0, 3, 1, 2))
    one = np.asarray(Image.open(hub / "folder" / "test" / "dog" / "003.png")).transpose(2, 0, 1)
    where = next(k for k, x in enumerate(data.test.x) if np.array_equal(x.numpy(), one))
    assert data.test.y[where] == 1
    grey = on_hub(hub / kind, "data.size=4", "data.color=grayscale")
    assert grey.spec.shape == (1, 4, 4)


@pytest.mark.parametrize("kind", ["saved", "folder"])
def test_a_stream_has_each_example_once_an_epoch(kind, hub, offline):
    whole = on_hub(hub / kind, "data.valid=0").resident("train", CPU).batch(slice(0, 40))[0]
    data = on_hub(hub / kind, "data.streaming=true", "data.examples=40", "data.readers=2", "data.buffer=9")
    assert data.sizes == {"train": 40, "test": 8}
    stream, epochs = data.resident("train", CPU), []
    for n in (0, 1, 0):
        epochs.append(torch.cat([batch.x for batch in epoch(stream, 1, n, 8)]))
        assert members(epochs[-1]) == members(whole)
    assert torch.equal(epochs[0], epochs[2])
    assert not torch.equal(epochs[0], epochs[1])
    later = data.resident("train", CPU)
    assert torch.equal(later.batch(later.order(1, 0)[16:24])[0], epochs[0][16:24])


def test_a_run_on_a_stream_of_the_hub(hub, offline, tmp_path):
    settings = ["data=huggingface", f"data.path={hub}/saved", "data.streaming=true", "conditional=label", *FEW_STEPS]
    summary = train(tmp_path / "run", *settings, "likelihood=discretized_logistic")
    assert np.isfinite(summary["test/elbo"])


def test_pictures_of_the_hub_and_of_shards_fill_their_frame_as_they_are_told(hub, offline, tmp_path):
    write_shard(tmp_path / "a.tar", [{"png": png(200, (10, 20)), "cls": b"0"} for _ in range(4)])
    for resize, borders in (("crop", False), ("pad", True)):
        made = dataset("data=shards", f"data.path={tmp_path}/a.tar", "data.size=8", f"data.resize={resize}",
                       "data.readers=1", "likelihood=gaussian").train  # fmt: skip
        x = made.decode(list(made.read(0, 0, range(4)))).x[0]
        assert (x[..., 0, :].max() == 0) == borders
        x = on_hub(hub / "saved", "data.size=[8,20]", f"data.resize={resize}", "likelihood=gaussian").train.x[:]
        assert (x[..., 0].max() == 0) == borders


def test_wrong_settings_of_the_hub_get_a_line(hub, offline, monkeypatch, tmp_path):
    path = hub / "saved"
    for overrides, message in (
        ((hub / "nothing",), r"data\.path=.*nothing: cannot be loaded \(.*\)"),
        (("ylecun/absent",), r"data\.path=ylecun/absent: cannot be loaded \(.*\)"),
        (
            (path, "data.split=trian"),
            r"data\.split=trian: no such split; did you mean train\? \(allowed: train, test\)",
        ),
        ((path, "data.valid_split=dev"), r"data\.valid_split=dev: no such split \(allowed: train, test\)"),
        ((path, "data.image=imag"), r"data\.image=imag: no such column; did you mean image\?"),
        ((path, "data.label=image"), r"data\.label=image: a column of classes .* is allowed"),
    ):
        with pytest.raises(UserError, match=message):
            on_hub(*overrides)
    monkeypatch.setattr("vae_cli.data.huggingface.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs datasets; pip install 'vae-cli\[huggingface\]'"):
        on_hub(path)
