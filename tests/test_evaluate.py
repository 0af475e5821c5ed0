"""vae-eval: a run folder in, the same model and honest numbers out."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml

from tests.conftest import ROOT, TINY, command, train
from vae_cli import finished as finished_runs
from vae_cli.commands.evaluate import METRICS, evaluate
from vae_cli.config import PATHS, validate_evaluate
from vae_cli.metrics import split
from vae_cli.system.errors import UserError

SHORT = (*TINY[:-1], "trainer.steps=30", "trainer.log_likelihood_samples=20")
SETTINGS = {
    "split": "test",
    "samples": 50,
    "examples": None,
    "metrics": ["elbo", "log_likelihood", "aggregate"],
    "amortisation_examples": 5,
    "batch_size": None,
    "device": "cpu",
    "compile": False,
    "seed": 0,
    "trust": False,
    "data": dict.fromkeys(PATHS),
}


def settings(folder, **changes):
    return validate_evaluate({**SETTINGS, "run": str(folder), **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A finished run, with the settings that vae-train would have written beside it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    return finished(path, *SHORT, "prior=vamp", "prior.components=5", "conditional=label")


def finished(path, *overrides):
    from tests.conftest import configure

    train(path, *overrides)
    (path / ".hydra").mkdir()
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*overrides).plain))
    return path


def evaluate_cli(*arguments):
    return command(*arguments, module="vae_cli.commands.evaluate")


def test_the_restored_model_has_the_numbers_of_the_run(folder):
    found = evaluate(settings(folder, metrics=["elbo"]))
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("elbo", "reconstruction", "kl", "active_units"):
        assert found[f"test/{key}"] == pytest.approx(summary[f"test/{key}"], rel=1e-6)
    assert found["test/distortion"] == -found["test/reconstruction"]


def test_everything_is_written_and_other_splits_are_kept(folder):
    every = [name for name in METRICS if name != "fid"]
    found = evaluate(settings(folder, metrics=every, samples=200))
    evaluate(settings(folder, split="valid"))
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["test/log_likelihood"] == found["test/log_likelihood"]
    assert written["test/log_likelihood_samples"] == 200
    assert written["valid/log_likelihood_samples"] == 50
    assert written["test/measure"].startswith("log-mass of binary values")
    names = ("log_likelihood_stderr", "posterior_gap", "effective_samples", "mutual_information", "amortisation_gap")
    assert all(np.isfinite(written[f"test/{name}"]) for name in names)
    assert 0.0 <= written["test/probe_accuracy"] <= 1.0
    assert written["test/classifier_frechet"] > 0
    assert "test/mig" not in written  # classes are one factor
    curve = [value for _, value in sorted((int(k), v) for k, v in written["test/bound_by_samples"].items())]
    assert curve[0] < curve[-1]
    for name in ("log_likelihood_test", "kl_by_dimension_test"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 5000


def test_attributes_are_factors(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, (300, 2))
    x = np.concatenate([y, y[:, ::-1], rng.normal(size=(300, 2))], axis=1).astype("float32")
    np.savez(tmp_path / "table.npz", x=x, y=y.astype("float32"))
    overrides = ["data=arrays", f"data.path={tmp_path}/table.npz", "likelihood=gaussian", "trainer.steps=20"]
    found = evaluate(settings(finished(tmp_path / "run", *overrides), metrics=["disentanglement", "probe", "quality"]))
    assert set(found) == {f"test/{n}" for n in ("mig", "probe_r2", *DCI)}


DCI = ("dci_disentanglement", "dci_completeness", "dci_informativeness")


def test_batches_change_nothing(folder):
    first = evaluate(settings(folder, metrics=["log_likelihood"], samples=400))
    second = evaluate(settings(folder, metrics=["log_likelihood"], samples=400, batch_size=37))
    error = 0.1  # of 400 draws
    assert first["test/log_likelihood"] == pytest.approx(second["test/log_likelihood"], abs=error)
    part = evaluate(settings(folder, metrics=["log_likelihood"], examples=7))
    assert part["test/log_likelihood_examples"] == 7


def test_errors_are_one_line(folder, tmp_path):
    cases = {
        (): "run: required; nothing was given",
        (f"run={tmp_path}",): "no run there",
        (f"run={folder}", "split=tests"): "split=tests: 'train', 'valid' or 'test' is allowed",
        (f"run={folder}", "samples=0"): "samples=0: at least 1 is allowed",
        (f"run={folder}", "sample=3"): "sample: no such setting; did you mean samples?",
        (f"run={folder}", "device=mps"): "mps: there is none on this machine",
    }
    for arguments, line in cases.items():
        done = evaluate_cli(*arguments)
        assert done.returncode == 1, arguments
        assert line in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("vae-eval: error: ")


def test_the_command_prints_a_table(folder):
    done = evaluate_cli(f"run={folder}", "samples=10", "metrics=[log_likelihood]")
    assert done.returncode == 0, done.stderr
    assert "log_likelihood" in done.stdout
    assert "±" in done.stdout
    assert not (ROOT / "evaluation.json").exists()


def test_a_foreign_part_is_refused_unless_trusted(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    config["likelihood"]["_target_"] = "os.system"
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        UserError, match=r"likelihood\._target_=os\.system: not a part of vae_cli; trust=\[os\] runs it"
    ):
        finished_runs.restore(run, torch.device("cpu"))
    config["likelihood"]["_target_"] = "vae_cli.likelihood.os"
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match="no such part of vae_cli"):
        finished_runs.restore(run, torch.device("cpu"), trust=True)


def test_weights_that_do_not_fit_are_told(folder, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    config = yaml.safe_load((run / ".hydra" / "config.yaml").read_text())
    config["model"]["hidden"] = [7]
    (run / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(
        UserError, match=r"best\.pt: of another run, which had model\.hidden=\[400\]; this one has \[7\]"
    ):
        finished_runs.restore(run, torch.device("cpu"))


def test_memory_that_runs_out_says_what_to_lower(folder, monkeypatch):
    def exhausted(*_, **__):
        raise RuntimeError("CUDA out of memory. Tried to allocate")

    monkeypatch.setattr(split, "log_likelihood", exhausted)
    with pytest.raises(UserError, match=r"out of memory: lower batch_size \(now 64\)"):
        evaluate(settings(folder, batch_size=64))


def test_fid_without_its_package_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match=r"pip install 'vae-cli\[fid\]'"):
        evaluate(settings(folder, metrics=["fid"]))


def test_data_that_changed_are_refused_and_data_that_moved_are_found(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype("float32") * 5
    np.savez(tmp_path / "table.npz", x=x)
    overrides = ["data=arrays", f"data.path={tmp_path}/table.npz", "likelihood=gaussian", "trainer.steps=10"]
    run = finished(tmp_path / "run", *overrides)
    first = evaluate(settings(run, metrics=["elbo"]))
    (tmp_path / "table.npz").rename(tmp_path / "moved.npz")
    assert finished_runs.restore(run, torch.device("cpu")).spec.shape == (4,)  # a model needs no data
    with pytest.raises(UserError, match="no such file"):
        evaluate(settings(run))
    place = f"data.path={tmp_path}/moved.npz"
    done = command(f"run={run}", "metrics=[elbo]", place, module="vae_cli.commands.evaluate")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "evaluation.json").read_text())["test/elbo"] == first["test/elbo"]
    done = command(
        f"run={run}", "task=anomaly", place, f"output={tmp_path}/scores", module="vae_cli.commands.generate.app"
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "scores").iterdir())
    refused = command(f"run={run}", "data.root=.", module="vae_cli.commands.evaluate")
    assert refused.stderr.endswith("data.root: no setting of the run's data (allowed: data.path, data.labels)\n")
    for changed, line in ((x * 1000, "mean"), (x[:150], "train: 160, now 120"), (x[:, :3], "shape")):
        np.savez(tmp_path / "table.npz", x=changed)
        with pytest.raises(UserError, match=f"the data changed since the run .{line}"):
            evaluate(settings(run))


def test_numbers_of_other_examples_do_not_stand_beside_these(folder):
    evaluate(settings(folder, metrics=["elbo", "aggregate"], examples=9, seed=3))
    evaluate(settings(folder, metrics=["elbo"]))
    written = json.loads((folder / "evaluation.json").read_text())
    assert "test/mutual_information" not in written
    assert (written["test/examples"], written["test/seed"]) == (20, 0)
    evaluate(settings(folder, metrics=["aggregate"]))
    assert {"test/elbo", "test/mutual_information"} <= set(json.loads((folder / "evaluation.json").read_text()))


def test_one_metric_that_fails_loses_none_of_the_others(folder, monkeypatch, capsys):
    def broken(*_, **__):
        raise ValueError("no such thing")

    monkeypatch.setattr(split, "aggregate", broken)
    with pytest.raises(UserError, match=r"metrics=\['aggregate'\]: failed"):
        evaluate(settings(folder, metrics=["aggregate", "elbo"], seed=9))
    assert "aggregate: failed (ValueError: no such thing)" in capsys.readouterr().out
    assert json.loads((folder / "evaluation.json").read_text())["test/elbo"] < 0


def test_a_figure_that_cannot_be_written_loses_no_numbers(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder, run)
    shutil.rmtree(run / "figures", ignore_errors=True)
    (run / "figures").write_text("no folder")
    found = evaluate(settings(run, metrics=["elbo", "log_likelihood"]))
    assert {"test/elbo", "test/log_likelihood"} <= set(found) & set(json.loads((run / "evaluation.json").read_text()))
    shown = capsys.readouterr().out
    for name in ("kl_by_dimension", "log_likelihood"):
        assert f"warning: figures/{name}_test.png: could not be written ([Errno 17] File exists" in shown


def test_faulty_run_folders_get_one_line(tmp_path):
    damaged = "a: [", "a: 2020-13-45", "a: !!int ''", "a: !!bool x", "a: " + "[" * 5000
    for content, line in (("", "holds no settings"), *((each, "cannot be read") for each in damaged)):
        (tmp_path / ".hydra").mkdir(exist_ok=True)
        (tmp_path / ".hydra" / "config.yaml").write_text(content)
        with pytest.raises(UserError, match=line):
            finished_runs.settings_of(tmp_path)


def test_a_path_that_looks_like_an_interpolation_is_a_path(tmp_path):
    folder = tmp_path / "${data.path}"
    folder.mkdir()
    np.save(folder / "x.npy", np.random.default_rng(0).random((40, 3)).astype("float32"))
    path = str(folder / "x.npy").replace("${", "\\${")
    small = ["data=arrays", f"data.path='{path}'", "likelihood=gaussian", "model.hidden=[4]", "trainer.steps=2"]
    done = command(*small, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert finished_runs.settings_of(tmp_path / "run").data.path == str(folder / "x.npy")
    again = command(f"resume={tmp_path}/run", "trainer.steps=4")
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "would be read as an interpolation" in again.stderr
