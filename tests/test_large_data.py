"""Data larger than memory are the same examples, in the same order, with the same numbers."""

import numpy as np
import pytest
import torch

from tests.conftest import configure, train
from vae_cli import parts
from vae_cli.data import cache, files
from vae_cli.data.mapped import Mapped
from vae_cli.data.resident import Resident, Streamed
from vae_cli.errors import UserError

CPU = torch.device("cpu")
FEW_STEPS = ["model.latent_dim=4", "trainer.steps=6", "trainer.log_every=1", "trainer.batch_size=16"]
RNG = np.random.default_rng(0)
ARRAYS = {
    "grey": RNG.integers(0, 256, (90, 6, 5)).astype("uint8"),
    "colour_last": RNG.integers(0, 256, (90, 6, 5, 3)).astype("uint8"),
    "bytes_of_bits": RNG.integers(0, 2, (90, 7)).astype("uint8"),
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
    for module in (files, cache):
        monkeypatch.setattr(module, "SMALL", 0)
    monkeypatch.setattr("vae_cli.data.mapped.CHUNK", 1000)
    monkeypatch.setattr(files, "CHUNK", 1000)


@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_in_a_file_is_the_array_in_memory(name, tmp_path, in_files):
    np.save(tmp_path / "x.npy", ARRAYS[name])
    np.savez(tmp_path / "x.npz", x=ARRAYS[name])
    mapped, memory = (dataset("data=arrays", f"data.path={tmp_path}/x.{kind}") for kind in ("npy", "npz"))
    assert isinstance(mapped.train.x, Mapped)
    assert (mapped.spec.shape, mapped.spec.levels) == (memory.spec.shape, memory.spec.levels)
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
    monkeypatch.setattr("vae_cli.data.resident.free_memory", lambda: 100)
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
