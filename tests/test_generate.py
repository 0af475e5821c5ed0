"""vae-generate and the Python interface: each task means what it says."""

import csv
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.metrics import roc_auc_score

import vae_cli
from tests.conftest import ROOT, command, configure, train
from vae_cli import parts
from vae_cli.batch import Batch
from vae_cli.commands.generate import tasks
from vae_cli.commands.generate.app import generate, validate
from vae_cli.commands.generate.latent import between
from vae_cli.config import PATHS, check_part
from vae_cli.config.options import targets
from vae_cli.config.words import CONF
from vae_cli.data import npy
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError

DIGITS = ["trainer.epochs=30", "trainer.log_likelihood_samples=0", "optimizer.lr=0.003"]


def finished(path, *overrides):
    """A run folder as vae-train leaves it."""
    train(path, *overrides)
    (path / ".hydra").mkdir()
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*overrides).plain))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Finished runs: plain digits, conditional digits, a table with negative values, two latent dimensions."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    x = 100.0 + 20.0 * rng.normal(size=(400, 1)) * np.ones(5) + rng.normal(size=(400, 5))
    np.savez(root / "table.npz", x=x.astype("float32"))
    table = ["data=arrays", f"data.path={root}/table.npz", "likelihood=gaussian", "model.latent_dim=3"]
    sides = rng.random((300, 4, 4)) < np.where(np.arange(4) < 2, 0.9, 0.1)
    right = np.arange(300) % 2 == 1
    sides[right] = sides[right, :, ::-1]
    np.savez(root / "sides.npz", x=sides, y=np.where(right, "right", "left"))
    named = [
        "data=arrays",
        f"data.path={root}/sides.npz",
        "conditional=label",
        "prior=conditional",
        "model.latent_dim=2",
        "model.hidden=[32]",
        "optimizer.lr=0.01",
    ]
    return {
        "plain": finished(root / "plain", *DIGITS),
        "labels": finished(root / "labels", *DIGITS, "conditional=label"),
        "table": finished(root / "table", *table, "trainer.epochs=60"),
        "named": finished(root / "named", *named, "trainer.epochs=20", "trainer.log_likelihood_samples=0"),
        "flat": finished(root / "flat", "model.latent_dim=2", "trainer.steps=20", "model=ladder", "latent.below=[1]",
                         "model.latent_dim=1"),
    }  # fmt: skip


def settings(folder, task, **changes):
    own = yaml.safe_load(Path(CONF, "task", f"{task}.yaml").read_text())
    raw = {"run": str(folder), "output": None, "data": dict.fromkeys(PATHS), "device": "cpu", "seed": 0, "trust": False}
    return validate({**raw, "task": {**own, **changes}})


def made(folder, task, **changes):
    """Run a task and return its arrays."""
    paths = generate(settings(folder, task, **changes))
    assert all(path.stat().st_size > 0 for path in paths)
    arrays = [path for path in paths if path.suffix == ".npz"]
    return dict(np.load(arrays[0])) if arrays else paths


def test_every_task_has_its_option_and_every_option_its_schema():
    files = {path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")}
    assert files == set(targets("task").values())
    for name in files - {"decode"}:
        settings("anywhere", name)


def test_samples_are_seeded_and_of_the_class_that_was_asked_for(folders):
    first, second = made(folders["plain"], "sample", n=20), made(folders["plain"], "sample", n=20)
    np.testing.assert_array_equal(first["x"], second["x"])
    assert first["x"].shape == (20, 8, 8)
    assert set(np.unique(made(folders["plain"], "sample", n=20, means=False)["x"])) == {0.0, 1.0}
    cool = made(folders["plain"], "sample", n=200, temperature=0.1)["z"]
    assert np.abs(cool).mean() < 0.2 * np.abs(made(folders["plain"], "sample", n=200)["z"]).mean()
    every = made(folders["labels"], "sample", n=3)
    assert every["y"].tolist() == [k for k in range(10) for _ in range(3)]
    assert set(made(folders["labels"], "sample", n=5, condition=7)["y"]) == {7}


@pytest.mark.parametrize("sampler", ["gaussian_mixture", "flow"])
def test_a_sampler_follows_the_codes_it_was_fitted_on(folders, sampler, monkeypatch):
    from vae_cli.commands.generate import samplers

    monkeypatch.setattr(samplers, "STEPS", 300)
    z = made(folders["plain"], "sample", n=3000, sampler=sampler)["z"]
    codes = samplers.codes(vae_cli.load(folders["plain"])).numpy()
    np.testing.assert_allclose(z.mean(0), codes.mean(0), atol=0.25)
    np.testing.assert_allclose(z.std(0), codes.std(0), rtol=0.25)
    monkeypatch.setattr(samplers, "codes", None)  # kept: it is not fitted again
    made(folders["plain"], "sample", n=3, sampler=sampler)


def test_an_interpolation_ends_at_the_reconstructions(folders):
    for name in ("plain", "labels", "table"):
        model = vae_cli.load(folders[name], device="cpu")
        x, y = vae_cli.load_data(folders[name], "test")
        y = y if name == "labels" else None
        expected = model.decode(
            model.encode(x[:3], None if y is None else y[:3]).mean, None if y is None else y[:3]
        ).mean
        for kind in ("spherical", "linear"):
            way = made(folders[name], "interpolate", indices=[0, 1, 2], steps=5, kind=kind)["x"]
            assert way.shape[:2] == (2, 5)
            np.testing.assert_allclose(way[0, 0], expected[0], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(way[0, -1], expected[1], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(way[1, -1], expected[2], rtol=1e-4, atol=1e-4)


def test_a_great_circle_keeps_the_length():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    assert between(a, b, 7, "spherical").norm(dim=1).tolist() == pytest.approx([2.0] * 7)
    torch.testing.assert_close(between(a, b, 3, "linear")[1], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(between(a, -a, 3, "spherical")[1], torch.zeros(2))


def test_a_transfer_keeps_z_and_changes_the_label(folders):
    found = made(folders["labels"], "transfer", n=4)
    model = vae_cli.load(folders["labels"], device="cpu")
    for k in range(10):
        expected = model.decode(found["z"], k).mean
        np.testing.assert_allclose(found["transferred"][k], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="task=transfer: the run has no classes"):
        generate(settings(folders["plain"], "transfer"))


@pytest.mark.parametrize("name", ["plain", "labels", "table", "flat"])
def test_codes_go_to_a_file_and_back(folders, name):
    codes = generate(settings(folders[name], "encode"))[0]
    model = vae_cli.load(folders[name], device="cpu")
    x, y = vae_cli.load_data(folders[name], "test")
    labels = y if model.conditional else None
    with np.load(codes) as kept:
        assert kept["z"].shape == (len(x), model.latent_dim)
        assert (kept["scale"] > 0).all()
    decoded = made(folders[name], "decode", codes=str(codes))["x"]
    expected = model.decode(model.encode(x, labels).mean, labels).mean
    np.testing.assert_allclose(decoded, expected, rtol=1e-3, atol=1e-4)


def test_a_traversal_moves_one_dimension_and_the_most_informative_first(folders):
    found = made(folders["plain"], "traverse", dimensions=4, steps=5)
    assert found["x"].shape == (4, 5, 8, 8)
    change = np.abs(found["x"][:, 0] - found["x"][:, -1]).mean((1, 2))
    assert (change > 0).all()
    model = vae_cli.load(folders["plain"], device="cpu")
    kl = model.kl_by_dimension(vae_cli.load_data(folders["plain"], "test")[0])
    assert found["dimensions"].tolist() == kl.argsort(descending=True)[:4].tolist()


def test_a_manifold_needs_two_dimensions(folders):
    assert made(folders["flat"], "manifold", n=4)["x"].shape == (4, 4, 8, 8)
    with pytest.raises(UserError, match="task=manifold: the run has 20 latent dimensions"):
        generate(settings(folders["plain"], "manifold"))


def test_imputation_keeps_what_is_known_and_beats_chance(folders, tmp_path):
    found = made(folders["plain"], "impute", mask="left", n=40, steps=30)
    known = found["known"]
    assert not known[:, :, :4].any()
    assert known[:, :, 4:].all()
    np.testing.assert_array_equal(found["imputed"][known], found["x"][known])
    missing = ~known
    error = np.abs(found["imputed"] - found["x"])[missing].mean()
    blind = np.abs(np.broadcast_to(found["x"].mean(0), found["x"].shape) - found["x"])[missing].mean()
    assert error < blind
    Image.fromarray((np.eye(8) * 255).astype("uint8")).save(tmp_path / "mask.png")
    shown = made(folders["plain"], "impute", mask=str(tmp_path / "mask.png"), n=2, steps=1)["known"]
    np.testing.assert_array_equal(shown[0], np.eye(8, dtype=bool))


def test_anomalies_come_first(folders, tmp_path):
    x, _ = vae_cli.load_data(folders["plain"], "test")
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(x.flatten(1).numpy(), axis=1).reshape(x.shape)
    np.save(tmp_path / "both.npy", np.concatenate([x.numpy(), shuffled]))
    paths = generate(settings(folders["plain"], "anomaly", source=str(tmp_path / "both.npy"), samples=16))
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    scores = [float(row["log_likelihood"]) for row in rows]
    assert scores == sorted(scores)
    odd = [int(row["index"]) >= len(x) for row in rows]
    assert roc_auc_score(odd, [-s for s in scores]) > 0.95


def test_extremes_of_few_examples_show_none_twice(folders, tmp_path, monkeypatch):
    x, _ = vae_cli.load_data(folders["plain"], "train")
    np.save(tmp_path / "few.npy", x[:31].numpy())
    shown = []
    monkeypatch.setattr(tasks.drawing, "grid", lambda spec, rows, path, *_: shown.append(torch.cat(rows)) or path)
    generate(settings(folders["plain"], "anomaly", source=str(tmp_path / "few.npy"), score="elbo", samples=1, n=32))
    assert len(shown[0]) == 31
    assert len(shown[0].unique(dim=0)) == len(x[:31].unique(dim=0))


def test_a_conditional_interpolation_does_not_jump_and_names_its_ends(folders, monkeypatch):
    titles = []
    monkeypatch.setattr(tasks.drawing, "grid", lambda spec, rows, path, title, names: titles.append(names) or path)
    _, y = vae_cli.load_data(folders["labels"], "test")
    ends = [0, int((y != y[0]).nonzero()[0])]
    way = generate(settings(folders["labels"], "interpolate", indices=ends, steps=21, kind="linear"))[2]
    moved = np.abs(np.diff(np.load(way)["x"][0], axis=0)).mean((1, 2))
    assert moved.max() < 4.0 * np.median(moved)
    assert titles == [[f"example 0 (class {y[0]}) →\nexample {ends[1]} (class {y[ends[1]]})"]]


def test_what_a_split_shows_is_a_mix_of_classes(folders):
    x, y = vae_cli.load_data(folders["labels"], "test")
    found = made(folders["labels"], "reconstruct", n=10)
    assert sorted(y[found["index"]].tolist()) == list(range(10))
    np.testing.assert_array_equal(found["x"], x[found["index"]])


def test_nothing_is_overwritten(folders, tmp_path):
    first, second = (generate(settings(folders["plain"], "reconstruct"))[0].parent for _ in range(2))
    assert first != second
    (tmp_path / "mine").write_text("mine")
    taken = settings(folders["plain"], "sample").model_copy(update={"output": str(tmp_path)})
    with pytest.raises(UserError, match="holds something already"):
        generate(taken)


def test_a_persons_own_pictures_are_taken(folders, tmp_path):
    Image.fromarray(np.full((20, 30, 3), 200, "uint8")).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((9, 9), "uint8")).save(tmp_path / "b.png")
    found = made(folders["plain"], "reconstruct", source=str(tmp_path))
    assert found["x"].shape == (2, 8, 8)
    assert found["x"][0].min() == 1.0
    with pytest.raises(UserError, match="the run is conditional and these examples have no labels"):
        generate(settings(folders["labels"], "reconstruct", source=str(tmp_path)))
    np.save(tmp_path / "other.npy", np.zeros((3, 5, 5), "float32"))
    with pytest.raises(UserError, match=r"examples of shape \[5, 5\]; \[8, 8\] is allowed"):
        generate(settings(folders["plain"], "encode", source=str(tmp_path / "other.npy")))


def test_the_interface_speaks_in_the_datas_own_units(folders):
    model = vae_cli.load(folders["table"], device="cpu")
    x, y = vae_cli.load_data(folders["table"], "test")
    assert y is None
    assert 90 < x.mean() < 110
    p = model.decode(model.encode(x).mean)
    assert (p.mean - x).abs().mean() < 10.0
    assert 60 < p.sample().mean() < 140
    batch = Batch((x - _row(model.spec.mean)) / _row(model.spec.std), None)
    own = model.vae.log_weights(batch, 500, 500)
    expected = torch.logsumexp(own, 0) - np.log(500)
    found = model.log_likelihood(x.numpy(), samples=500)
    assert (found.mean() - expected.mean()).abs() < 0.3
    z = torch.zeros(len(x), 3)
    standard = model.vae.decode(z).log_prob((x - _row(model.spec.mean)) / _row(model.spec.std))
    torch.testing.assert_close(model.decode(z).log_prob(x), standard - model.vae.log_volume, rtol=1e-4, atol=1e-3)
    assert (model.elbo(x, samples=200) < found + 1.0).all()
    assert 60 < model.sample(50).mean() < 140


def _row(values):
    return torch.tensor(values).view(1, -1)


def test_what_does_not_fit_is_told(folders):
    model = vae_cli.load(folders["plain"], device="cpu")
    for x, line in (
        (np.zeros((2, 7, 8)), r"\[B, 8, 8\] is allowed"),
        (np.full((2, 8, 8), 255.0), "divide by 255"),
        (np.full((2, 8, 8), 0.5), "binarise it"),
    ):
        with pytest.raises(ValueError, match=line):
            model.encode(x)
    with pytest.raises(ValueError, match=r"\[\.\.\., 20\] is allowed"):
        model.decode(np.zeros((2, 3)))
    conditional = vae_cli.load(folders["labels"], device="cpu")
    with pytest.raises(ValueError, match="give labels y"):
        conditional.sample(3)
    with pytest.raises(ValueError, match="from 0 to 9 are allowed"):
        conditional.sample(3, y=12)
    assert conditional.sample(3, y=[1, 2, 3]).shape == (3, 8, 8)
    with pytest.raises(UserError, match="no run there"):
        vae_cli.load("/nowhere")


def generated(*arguments):
    return command(*arguments, module="vae_cli.commands.generate.app")


def test_the_command_prints_paths_and_one_line_errors(folders, tmp_path):
    done = generated(f"run={folders['plain']}", f"output={tmp_path}/new", "task.n=4")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert (tmp_path / "new" / "samples.png").is_file()
    for arguments, line in (
        (["run=/nowhere"], "run=/nowhere: no run there"),
        ([f"run={folders['plain']}", "task=smple"], "did you mean sample?"),
        ([f"run={folders['plain']}", "task.condition=3"], "has no effect, the run is not conditional"),
        ([f"run={folders['labels']}", "task.condition=10"], "a class from 0 to 9, its name, or all, is allowed"),
        ([f"run={folders['plain']}", "task.means=3"], "task.means=3: true or false is allowed"),
        (
            [f"run={folders['plain']}", "task=interpolate", "task.indices=[0,999999]"],
            "task.indices=[0, 999999]: there is no example 999999; 0 to ",
        ),
    ):
        done = generated(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("vae-generate: error: "), done.stderr
        assert line in done.stderr
        assert done.stderr.count("\n") == 1


def test_settings_are_checked():
    assert check_part("task", {"task": yaml.safe_load(Path(CONF, "task", "sample.yaml").read_text())}).n == 64
    with pytest.raises(UserError, match="no such task"):
        validate({"task": {"_target_": "os.system"}})


def test_labels_of_a_persons_file_are_the_runs_own_classes(folders, tmp_path):
    """A file that holds some of the classes only, under their names."""
    x, y = vae_cli.load_data(folders["labels"], "test")
    chosen = y >= 7
    np.savez(tmp_path / "some.npz", x=x[chosen].numpy(), y=y[chosen].numpy())
    np.testing.assert_array_equal(made(folders["labels"], "encode", source=str(tmp_path / "some.npz"))["y"], y[chosen])
    np.savez(tmp_path / "other.npz", x=x[:2].numpy(), y=np.array(["7", "cat"]))
    with pytest.raises(UserError, match=r"other\.npz: the run knows no class cat; 0, 1, 2, "):
        made(folders["labels"], "encode", source=str(tmp_path / "other.npz"))
    z = vae_cli.load(folders["labels"], device="cpu").encode(x[:2], y[:2]).mean
    np.savez(tmp_path / "codes.npz", z=z.numpy(), y=np.array(["3", "1"]))
    as_text = made(folders["labels"], "decode", codes=str(tmp_path / "codes.npz"))["x"]
    np.savez(tmp_path / "codes.npz", z=z.numpy(), y=np.array([3, 1]))
    np.testing.assert_array_equal(as_text, made(folders["labels"], "decode", codes=str(tmp_path / "codes.npz"))["x"])


def test_a_gaussian_on_grey_levels_imputes(tmp_path):
    folder = finished(tmp_path / "grey", "likelihood=gaussian", "trainer.steps=20")
    assert np.isfinite(made(folder, "impute", mask="left", n=4, steps=2)["imputed"]).all()


def test_a_sampler_is_fitted_anew_when_the_run_has_gone_on_and_seeds_reproduce(folders, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(folders["table"], folder)
    first = made(folder, "sample", sampler="gaussian_mixture", n=5)["z"]
    np.testing.assert_array_equal(first, made(folder, "sample", sampler="gaussian_mixture", n=5)["z"])
    cold = made(folder, "sample", sampler="gaussian_mixture", n=1, temperature=1e-3)["z"]
    assert np.abs(cold - made(folder, "sample", sampler="gaussian_mixture", n=1)["z"]).max() > 1e-2
    kept = list((folder / "generated" / "samplers").iterdir())
    step = vae_cli.load(folder, device="cpu").run.step
    assert [path.name for path in kept] == [f"gaussian_mixture-{step}.pt"]


DAMAGED_SAMPLERS = {
    "no file of ours": lambda path, kept: path.write_bytes(b"PK"),
    "cut short": lambda path, kept: path.write_bytes(path.read_bytes()[:-200]),
    "of another shape": lambda path, kept: checkpoint.save(kept | {"means": torch.zeros(2, 99)}, path),
    "no covariances": lambda path, kept: checkpoint.save(kept | {"covariances": -kept["covariances"]}, path),
    "no weights": lambda path, kept: checkpoint.save(kept | {"weights": kept["weights"] * torch.nan}, path),
    "something else": lambda path, kept: checkpoint.save({"weights": "text", "means": 3}, path),
}


def test_a_damaged_sampler_is_fitted_anew(folders, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(folders["table"], folder)
    first = made(folder, "sample", sampler="gaussian_mixture", n=5)["z"]
    (path,) = (folder / "generated" / "samplers").iterdir()
    kept = checkpoint.load(path)
    for damage in DAMAGED_SAMPLERS.values():
        damage(path, kept)
        np.testing.assert_array_equal(first, made(folder, "sample", sampler="gaussian_mixture", n=5)["z"])
        said = capsys.readouterr().err
        assert said.startswith(f"warning: {path}: ")
        assert said.endswith("; it is fitted anew\n")


def test_labels_that_do_not_fit_are_told(folders):
    model = vae_cli.load(folders["labels"], device="cpu")
    x, y = vae_cli.load_data(folders["labels"], "test")
    for wrong in (3.7, torch.zeros(4, 1), torch.eye(10)[:4], 10):
        with pytest.raises(ValueError, match="one class, or 4, from 0 to 9 are allowed"):
            model.encode(x[:4], wrong)
    with pytest.raises(ValueError, match="x is empty"):
        model.encode(x[:0], y[:0])
    plain = vae_cli.load(folders["plain"], device="cpu")
    with pytest.raises(ValueError, match="this model is not conditional"):
        plain.sample(4, y=3)
    with pytest.raises(ValueError, match="at least 0 is allowed"):
        plain.sample(4, temperature=-1.0)


def claiming(path, shape):
    """An .npy of a few bytes whose header claims an array of that shape."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(bytes(64))


def test_faulty_codes_get_one_line(folders, tmp_path):
    path = tmp_path / "codes.npz"
    good = np.zeros((4, 20), "float32")
    np.savez(path, z=good)
    whole = path.read_bytes()
    for fault, line in (
        (whole[: len(whole) // 2], "cannot be read (damaged or cut short"),
        (b"z", "no NumPy file"),
        ({"x": good, "w": good}, "holds x, w; codes must be under `z`"),
        ({"z": good[:0]}, "codes of shape [0, 20]; [N, 20] with N ≥ 1 is allowed"),
        ({"z": good + 1j}, "codes of type complex64; numbers are allowed"),
        ({"z": good.astype(str)}, "codes of type <U32; numbers are allowed"),
        (
            {"z": np.where(np.eye(4, 20)[::-1] > 0, np.nan, good)},
            "NaN, infinity or beyond float32 in `z` (first in code 0)",
        ),
        ({"z": np.full((2, 20), 1e300)}, "NaN, infinity or beyond float32 in `z` (first in code 0)"),
        ({"z": good.astype(object)}, "cannot be read (it holds Python objects"),
    ):
        path.write_bytes(fault) if isinstance(fault, bytes) else np.savez(path, **fault)
        with pytest.raises(UserError) as told:
            generate(settings(folders["plain"], "decode", codes=str(path)))
        assert str(told.value).startswith(f"task.codes={path}: {line}")
    np.savez(path, z=good, y=np.arange(3))
    with pytest.raises(UserError, match=r"4 codes in `z` but 3 labels in `y`"):
        generate(settings(folders["labels"], "decode", codes=str(path)))


@pytest.mark.parametrize(("task", "key"), [("decode", "codes"), ("impute", "mask"), ("encode", "source")])
def test_a_file_that_claims_more_than_there_is_memory_is_refused_unread(folders, tmp_path, monkeypatch, task, key):
    claiming(tmp_path / "claims.npy", (10**11, 20))
    np.savez_compressed(tmp_path / "inflates.npz", z=np.zeros((50_000, 20), "float32"))
    monkeypatch.setattr(npy, "free_memory", lambda: 2**20)
    for name, size in (("claims.npy", "7450.6"), ("inflates.npz", "0.0")):
        given = {key: str(tmp_path / name)}
        with pytest.raises(UserError, match=rf"task\.{key}=.*{name}: its arrays need {size} GiB"):
            generate(settings(folders["plain"], task, **given))


def test_a_mask_that_cannot_be_read_is_told_of_by_its_key(folders, tmp_path):
    (tmp_path / "mask.png").write_text("no picture")
    np.savez(tmp_path / "mask.npz", a=np.ones((8, 8)), b=np.ones((8, 8)))
    for name, line in (("mask.png", "task.mask: .*cannot be read as an image"), ("mask.npz", "holds a, b; one array")):
        with pytest.raises(UserError, match=line):
            generate(settings(folders["plain"], "impute", mask=str(tmp_path / name)))
    np.save(tmp_path / "mask.npy", np.eye(8) > 0)
    known = made(folders["plain"], "impute", mask=str(tmp_path / "mask.npy"), n=2, steps=1)["known"]
    np.testing.assert_array_equal(known[0], np.eye(8, dtype=bool))


def test_numbers_of_a_table_of_whole_numbers_are_in_its_own_units(tmp_path):
    """A run on int64 columns is the run on the same floats, in its log, its numbers and in a notebook."""
    rng, found = np.random.default_rng(1), {}
    people = np.stack([rng.integers(low, high, 400) for low, high in ((18, 91), (0, 2), (1, 5))], 1)
    for kind in ("int64", "float64"):
        np.save(tmp_path / f"{kind}.npy", people.astype(kind))
        settings = ["data=arrays", f"data.path={tmp_path}/{kind}.npy", "likelihood=gaussian", "trainer.steps=6"]
        run = finished(tmp_path / kind, *settings, "model.latent_dim=2", "trainer.log_likelihood_samples=20")
        x, _ = vae_cli.load_data(run)
        found[kind] = json.loads((run / "summary.json").read_text())["test/log_likelihood"]
        whole = "whole numbers taken for real values, standardised, numbers in the data's own units"
        assert (whole in (run / "train.log").read_text().splitlines()[0]) == (kind == "int64")
        ages = parts.load_dataset(configure(*settings[:3], "data.standardize=false")).test.x[:, 0]
        assert x[:, 0].tolist() == pytest.approx(ages.tolist(), abs=1e-4)
        assert vae_cli.load(run).log_likelihood(x, samples=200).mean() == pytest.approx(found[kind], abs=0.1)
        codes = made(run, "encode", source=str(tmp_path / f"{kind}.npy"))["z"]
        np.testing.assert_allclose(codes, vae_cli.load(run).encode(people).mean, rtol=1e-4, atol=1e-5)
    assert found["int64"] == found["float64"]


def scores_of(folder, source):
    rows = csv.DictReader(generate(settings(folder, "anomaly", source=str(source), samples=8))[0].read_text().split())
    return {int(row["index"]): float(row["log_likelihood"]) for row in rows}


@pytest.mark.parametrize("extra", [["likelihood=categorical"], ["likelihood=gaussian", "data.dequantize=true"]])
def test_grey_levels_of_a_file_are_the_runs_whatever_the_largest_in_it(tmp_path, extra):
    from sklearn.datasets import load_digits

    folder = finished(tmp_path / "grey", *extra, "trainer.steps=20", "trainer.log_likelihood_samples=0")
    x = load_digits().images[:6].astype("int64")
    bright, dark = x.clip(0, 15), x.clip(0, 15)
    bright[5] = 16
    found = []
    for name, part in (("bright", bright), ("dark", dark), ("bytes", dark.astype("uint8")), ("unit", dark / 16)):
        np.save(tmp_path / f"{name}.npy", part)
        found.append([scores_of(folder, tmp_path / f"{name}.npy")[k] for k in range(5)])
    assert found[0] == found[1] == found[2] == pytest.approx(found[3], rel=1e-4)
    for name, part in (("large", x + 1), ("float", x.astype("float32"))):
        np.save(tmp_path / f"{name}.npy", part)
        with pytest.raises(UserError, match=r"task\.source=.*; integers 0 … 16 or fractions in \[0, 1\] are allowed"):
            generate(settings(folder, "encode", source=str(tmp_path / f"{name}.npy")))


def test_values_of_a_file_are_held_against_a_binary_run_before_they_are_cut(folders, tmp_path):
    grey = np.linspace(0, 1, 64).reshape(1, 8, 8)
    cut = (grey > 0.5).astype("float32")
    for fits in (grey, (grey * 255).astype("uint8"), cut.astype("int64"), cut > 0):
        np.save(tmp_path / "x.npy", fits)
        found = made(folders["plain"], "reconstruct", source=str(tmp_path / "x.npy"))["x"]
        np.testing.assert_array_equal(found, cut)
    for beyond in (
        grey * 16,
        (grey * 16).astype("int64"),
        grey - 0.5,
        np.where(grey > 0.9, np.nan, grey),
        grey * 1e300,
    ):
        np.save(tmp_path / "x.npy", beyond)
        line = r"task\.source=.*: values from .*; integers 0 and 1, bytes or fractions in|holds NaN|infinity"
        with pytest.raises(UserError, match=line):
            generate(settings(folders["plain"], "encode", source=str(tmp_path / "x.npy")))


def test_whole_numbers_in_a_table_stand_for_themselves(folders, tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 5), 100))
    assert made(folders["table"], "reconstruct", source=str(tmp_path / "x.npy"))["x"] == pytest.approx(100.0)
    np.save(tmp_path / "x.npy", np.full((2, 5), "a"))
    with pytest.raises(UserError, match=r"task\.source=.*: examples of type <U1; numbers are allowed"):
        generate(settings(folders["table"], "encode", source=str(tmp_path / "x.npy")))


def test_an_example_that_is_not_there_is_told_of_by_its_setting(folders):
    with pytest.raises(UserError, match=r"task\.index=5000: there is no example 5000; 0 to \d+ are allowed"):
        generate(settings(folders["plain"], "traverse", index=5000))


@pytest.mark.parametrize(("task", "line"), [
    ("sample", r"lower task\.n$"), ("traverse", r"lower task\.dimensions or task\.steps$"),
    ("anomaly", r"lower task\.samples$"), ("encode", r"give fewer examples at once$"),
])  # fmt: skip
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_runs_out_is_told_with_what_to_lower(folders, monkeypatch, task, line, error):
    def exhausted(*_, **__):
        raise error

    monkeypatch.setattr(tasks, task, functools.wraps(getattr(tasks, task))(exhausted))
    with pytest.raises(UserError, match=rf"task={task}: out of memory \(.*\); {line}"):
        generate(settings(folders["plain"], task))


def test_a_class_may_be_given_by_its_name(folders):
    model = vae_cli.load(folders["named"], device="cpu")
    assert model.spec.names == ("left", "right")
    x, y = vae_cli.load_data(folders["named"], "test")
    assert model.sample(50, y="right")[:, :, 2:].mean() > 0.7 > 0.3 > model.sample(50, y="left")[:, :, 2:].mean()
    names = [model.spec.names[k] for k in y.tolist()]
    for given in (names, tuple(names), np.array(names)):
        torch.testing.assert_close(model.encode(x, given).mean, model.encode(x, y).mean)
    torch.testing.assert_close(model.decode(torch.zeros(3, 2), "right").mean, model.decode(torch.zeros(3, 2), 1).mean)
    with pytest.raises(
        ValueError, match=r"y: the run knows no class rigt; did you mean right\?; left, right are allowed"
    ):
        model.elbo(x, "rigt")
    assert made(folders["named"], "sample", n=4, condition="right")["y"].tolist() == [1] * 4
    assert made(folders["named"], "manifold", n=4, condition="left")["x"].shape == (4, 4, 4, 4)
    with pytest.raises(
        UserError, match=r"task\.condition=up: the run knows no class up; left, right are allowed, or all"
    ):
        generate(settings(folders["named"], "sample", condition="up"))


def test_the_prior_is_public(folders):
    named, plain = (vae_cli.load(folders[name], device="cpu") for name in ("named", "plain"))
    p = named.prior(["left", "right", "left"])
    assert (p.batch_shape, p.event_shape) == ((3,), (2,))
    torch.testing.assert_close(p.mean[1:2], named.prior("right").mean)
    assert not torch.allclose(p.mean[0], p.mean[1])
    assert plain.prior().log_prob(torch.zeros(5, 20)).shape == (5,)
    with pytest.raises(ValueError, match="give labels y"):
        named.prior()
    with pytest.raises(ValueError, match="not conditional"):
        plain.prior(3)


def test_codes_of_any_batch_are_decoded_and_one_example_is_told_how_to_be_given(folders):
    for name, y in (("plain", None), ("table", None), ("named", "left"), ("named", ["left", "right", "left"])):
        model = vae_cli.load(folders[name], device="cpu")
        z = torch.randn(4, 3, model.latent_dim)
        p = model.decode(z, y)
        assert (p.batch_shape, p.event_shape) == ((4, 3), model.vae.shape)
        torch.testing.assert_close(p.mean[2], model.decode(z[2], y).mean)
        one = model.decode(z[2, 0], y if y is None else "left")
        assert one.batch_shape == ()
        torch.testing.assert_close(one.mean, p.mean[2, 0], rtol=1e-4, atol=1e-5)
        x, _ = vae_cli.load_data(folders[name], "test")
        with pytest.raises(ValueError, match=r"\] is allowed; of one example give x\[None\]"):
            model.encode(x[0], "left")


def test_unlabelled_examples_are_scored_under_every_class(folders, tmp_path):
    model = vae_cli.load(folders["named"], device="cpu")
    x, y = vae_cli.load_data(folders["named"], "test")
    torch.manual_seed(0)
    by_class = model.log_likelihood_by_class(x, samples=64)
    assert by_class.shape == (len(x), 2)
    assert (by_class.argmax(1) == y).float().mean() > 0.9
    torch.manual_seed(0)
    torch.testing.assert_close(by_class[:, 0], model.log_likelihood(x, "left", samples=64))
    np.save(tmp_path / "x.npy", x.numpy())
    for how in ("auto", "max"):
        path = generate(settings(folders["named"], "anomaly", source=str(tmp_path / "x.npy"), over_classes=how))[0]
        rows = list(csv.DictReader(path.read_text().splitlines()))
        for row in rows:
            own, most, mean = (float(row[f"log_likelihood{end}"]) for end in ("", "_max", "_mean"))
            assert most - np.log(2) - 1e-4 <= mean <= most
            assert own == (most if how == "max" else mean)
        assert [float(row["log_likelihood"]) for row in rows] == sorted(float(row["log_likelihood"]) for row in rows)
        right = [(row["class"] == "right") == bool(y[int(row["index"])]) for row in rows]
        assert np.mean(right) > 0.9
    rows = list(csv.DictReader(generate(settings(folders["named"], "anomaly"))[0].read_text().splitlines()))
    assert set(rows[0]) == {"index", "log_likelihood", "label"}
    with pytest.raises(UserError, match=r"these examples have no labels; task=anomaly scores them under every class"):
        generate(settings(folders["named"], "encode", source=str(tmp_path / "x.npy")))
    with pytest.raises(UserError, match=r"task\.over_classes=max: the run is not conditional on classes"):
        generate(settings(folders["plain"], "anomaly", over_classes="max"))
    with pytest.raises(ValueError, match="not conditional on classes"):
        vae_cli.load(folders["plain"], device="cpu").elbo_by_class(x)
