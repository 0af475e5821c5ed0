"""Run folders that were made to harm: what they hold is refused in a line, and what is not theirs is left alone."""

import copy
import json
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import TINY, command, train
from tests.processes import Command
from tests.test_compare import fake
from tests.test_untrusted import crafted  # noqa: F401  the fixture
from vae_cli import api
from vae_cli.commands import study
from vae_cli.commands.compare import compare
from vae_cli.commands.sweep import Sweep
from vae_cli.data.arrays import named
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError

SOON = 60.0  # seconds in which a command refuses


def refused(*arguments, **named):
    """Run a command that ends with one line, and return the line."""
    with Command(*arguments, **named) as started:
        done = started.done(SOON)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


LINKED = (
    ".lock", "metrics.jsonl", "train.log", "report.html", "summary.json.partial", "figures/elbo.png", "tensorboard",
    "checkpoints/last.pt.partial", ".hydra/config.yaml.partial", "evaluation.json", "generated",
)  # fmt: skip


@pytest.mark.parametrize("name", LINKED)
def test_a_link_in_a_run_leads_nothing_outside(crafted, tmp_path, name):  # noqa: F811
    victim, link = tmp_path / "victim", crafted / name
    victim.mkdir()
    (victim / "codes").mkdir()
    (victim / "text").write_text("mine")
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True) if not link.is_dir() else link.rename(tmp_path / "aside")
    link.symlink_to(victim if name in ("tensorboard", "generated") else victim / "text")
    for line in (
        refused(f"resume={crafted}", "trainer.steps=5"),
        refused(f"run={crafted}", "metrics=[elbo]", module="vae_cli.commands.evaluate"),
    ):
        assert f"{link}: a link or no file" in line
    assert (victim / "text").read_text() == "mine"
    assert sorted(os.listdir(victim)) == ["codes", "text"]


@pytest.mark.parametrize("name", ["report.html", "train.log", "metrics.jsonl", ".lock", "figures/elbo.png", "own.txt"])
def test_a_hard_link_in_a_run_is_written_through_by_nothing(crafted, tmp_path, name):  # noqa: F811
    victim, link = tmp_path / "victim", crafted / name
    victim.write_text("mine")
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    os.link(victim, link)
    with pytest.raises(UserError, match=f"{name}: a hard link, the file has another name elsewhere"):
        train(crafted, *TINY, "trainer.steps=5", resume=True)
    with pytest.raises(UserError, match=f"{name}: a hard link"):
        api.load(crafted)
    assert victim.read_text() == "mine"


def test_two_names_of_one_checkpoint_are_a_run_that_was_killed_between_two_writes(crafted):  # noqa: F811
    folder = crafted / "checkpoints"
    (folder / "previous.pt").unlink(missing_ok=True)
    os.link(folder / "last.pt", folder / "previous.pt")
    before = (folder / "last.pt").read_bytes()
    assert train(crafted, *TINY, "trainer.steps=5", resume=True)["steps"] == 5
    assert (folder / "previous.pt").read_bytes() == before


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", [".lock", "multirun.yaml", "study.db", "comparison.csv", "0"])
def test_a_link_in_a_sweep_leads_nothing_outside(tmp_path, name, link):
    sweep, victim = tmp_path / "sweep", tmp_path / "victim"
    sweep.mkdir()
    if name == "0":
        victim.mkdir()
        os.symlink(victim, sweep / name)
    else:
        victim.write_text("mine")
        link(victim, sweep / name)
    callback, config = Sweep(), OmegaConf.create({"resume": "auto", "hydra": {"sweep": {"dir": str(sweep)}}})
    with pytest.raises(SystemExit, match=rf"{name}: a (link|hard link)"):
        callback.on_multirun_start(config)
    assert os.listdir(sweep) == [name]
    assert os.listdir(victim) == [] if name == "0" else victim.read_text() == "mine"


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
@pytest.mark.parametrize("name", ["comparison.csv", "rate_distortion.png", "test_elbo_by_kl_weight.png"])
def test_a_comparison_replaces_links_and_leaves_alone_what_they_lead_to(tmp_path, name, link):
    for job, weight in enumerate((1.0, 2.0)):
        numbers = {"test/elbo": -weight, "test/kl": 1.0, "test/reconstruction": 1.0 - weight}
        fake(tmp_path / "sweep" / str(job), numbers, kl__weight=weight)
    (tmp_path / "victim").write_text("mine")
    link(tmp_path / "victim", tmp_path / "sweep" / name)
    compare([str(tmp_path / "sweep")])
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "sweep" / name).stat().st_size > 4


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\x00" + bytes(range(256)) * 40, b"text", None])
def test_a_damaged_study_is_refused_in_one_line(tmp_path, content):
    pytest.importorskip("optuna")
    if content is None:
        with sqlite3.connect(tmp_path / "study.db") as database:
            database.execute("create table studies (study_id integer)")
    else:
        (tmp_path / "study.db").write_bytes(content)
    sweeper = {"_target_": "optuna", "storage": f"sqlite:///{tmp_path}/study.db", "study_name": "s", "params": {},
               "direction": "maximize", "n_trials": 2, "sampler": {}}  # fmt: skip
    hydra = {"sweeper": sweeper, "sweep": {"dir": str(tmp_path)}, "overrides": {"task": [], "hydra": []}}
    config = OmegaConf.create({"hydra": hydra})
    if content == b"":  # as good as none
        study.go_on(config, tmp_path)
        return
    with pytest.raises(UserError, match=r"study\.db: no study to go on with \(") as error:
        study.go_on(config, tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("then", ["text", 3, {"a": 1}, [["nested"]], ["=1", 2]])
def test_a_study_of_whatever_else_is_refused(tmp_path, then):
    config = OmegaConf.create({"hydra": {"overrides": {"task": []}, "sweeper": {"params": None}}})
    with pytest.raises(UserError), study._refused_if_damaged(Path(__file__)):
        study._refuse_another(config, SimpleNamespace(user_attrs={study.SETTINGS: then}), tmp_path)


def test_a_pipe_in_a_run_is_not_waited_for(crafted):  # noqa: F811
    (crafted / "metrics.jsonl").unlink()
    os.mkfifo(crafted / "metrics.jsonl")
    assert "metrics.jsonl: a link or no file" in refused(f"resume={crafted}", "trainer.steps=5")


BOMB = "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))


@pytest.mark.parametrize("text", [BOMB, f"{BOMB}data: {{n: *a11}}\n", "data: &a {x: *a}\n", "[" * 3000])
def test_yaml_that_grows_is_refused_at_once(crafted, text):  # noqa: F811
    (crafted / ".hydra" / "config.yaml").write_text(text)
    assert "config.yaml: cannot be read" in refused(f"resume={crafted}", "trainer.steps=5")
    assert "config.yaml: cannot be read" in refused(f"run={crafted}", module="vae_cli.commands.evaluate")


@pytest.mark.parametrize(
    "text", ["- kl.weight=${oc.env:SECRET}\n- data.n=200", BOMB, "- 1\n- null", "just words", "{a: 1}", "\xff"]
)
def test_what_was_typed_before_is_kept_where_it_is_plain(crafted, monkeypatch, text):  # noqa: F811
    monkeypatch.setenv("SECRET", "not-to-be-told")
    (crafted / ".hydra" / "overrides.yaml").write_text(text, encoding="latin-1")
    done = command(f"resume={crafted}", "trainer.steps=5")
    assert done.returncode == 0, done.stderr
    for path in ("report.html", ".hydra/overrides.yaml", ".hydra/config.yaml"):
        assert "not-to-be-told" not in (crafted / path).read_text()
    assert ("data.n=200" in (crafted / ".hydra" / "overrides.yaml").read_text()) == text.endswith("n=200")


def test_a_tensor_larger_than_its_file_is_refused(tmp_path):
    for tensor in (
        torch.zeros(1).expand(10**14), torch.zeros(3).to_sparse(), torch.empty(3, device="meta"),
    ):  # fmt: skip
        torch.save({"format": checkpoint.FORMAT, "digest": "", "model": tensor}, tmp_path / "last.pt")
        with pytest.raises(UserError, match="not a whole checkpoint"):
            checkpoint.load(tmp_path / "last.pt")


def replaced(state, key, value):
    """A state with another value in one place, or without it, with the right checksum."""
    state = copy.copy(state)
    if value is None:
        del state[key]
    else:
        state[key] = value
    return state


@pytest.mark.parametrize(
    "value", [None, 3, "text", [], {}, {"a": torch.zeros(2)}, -1.5, True, -10, pytest.param(10**400, id="huge")]
)
def test_checkpoints_that_fit_nothing_are_refused_or_do_no_harm(crafted, value):  # noqa: F811
    last, best = crafted / "checkpoints" / "last.pt", crafted / "checkpoints" / "best.pt"
    whole, chosen = checkpoint.load(last), checkpoint.load(best)
    for key in chosen:
        checkpoint.save(replaced(chosen, key, value), best)
        _passes_or_is_refused(lambda: api.load(crafted))
    checkpoint.save(chosen, best)
    for key in whole:
        checkpoint.save(replaced(whole, key, value), last)
        _passes_or_is_refused(lambda: train(crafted, *TINY, "trainer.steps=3", resume=True))


def _passes_or_is_refused(work):
    with suppress(UserError):
        work()


GARBAGE = [
    "hello}", "{}", '{"step": "a", "epoch": 1}', '{"step": null, "epoch": 1}', '{"step": 1}', "9" * 5000, "[" * 9999,
    '{"step": 1, "epoch": 1, "valid/elbo": null}', '{"step": 1, "epoch": NaN}', "[1]", '"a"', "\x00",
]  # fmt: skip


def test_lines_that_are_none_are_passed_over(crafted):  # noqa: F811
    metrics = crafted / "metrics.jsonl"
    metrics.write_bytes("\n".join(GARBAGE).encode() + b"\n\xff\n" + metrics.read_bytes())
    (crafted / "tensorboard" / "events.out.tfevents.12abc.x").touch()
    done = command(f"resume={crafted}", "trainer.steps=5")
    assert done.returncode == 0, done.stderr
    assert all({"step", "epoch"} <= set(json.loads(line)) for line in metrics.read_text().splitlines())


def test_an_own_folder_beside_the_codes_is_not_deleted(crafted):  # noqa: F811
    mine = crafted / "tensorboard" / "project" / "codes"
    mine.mkdir(parents=True)
    (mine.parent / "thesis.tex").write_text("mine")
    done = command(f"resume={crafted}", "trainer.steps=5")
    assert done.returncode == 0, done.stderr
    assert (mine.parent / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("change", [lambda x: 255 - x, lambda x: x[::-1]], ids=["inverted", "in another order"])
def test_grey_levels_that_changed_are_not_those_of_the_run(tmp_path, change):
    x = np.random.default_rng(0).integers(0, 256, (60, 6, 6)).astype(np.uint8)
    x[0, 0, 0] = 255
    np.savez(tmp_path / "x.npz", x=x)
    settings = ["data=arrays", f"data.path={tmp_path}/x.npz", *TINY[3:], "trainer.steps=2"]
    train(tmp_path / "run", *settings)
    np.savez(tmp_path / "x.npz", x=change(x))
    with pytest.raises(UserError, match=r"the data changed since the run began \(train examples\)"):
        train(tmp_path / "run", *settings, "trainer.steps=4", resume=True)


@pytest.mark.parametrize("labels", [[np.inf, 1.0], [1e300, 1.0], [np.nan, 1.0]])
def test_labels_that_are_no_numbers_are_no_classes(labels):
    with pytest.raises(UserError, match="classes"):
        named("data.path=x", np.array(labels))


def test_numbers_that_float32_cannot_tell_apart_are_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(50, 3))
    x[:, 1] = 1.7e9 + 100 * x[:, 1]
    np.savez(tmp_path / "x.npz", x=x)
    line = r"element 1 of `x` varies by .* less than float32 tells apart; subtract its mean"
    with pytest.raises(UserError, match=line):
        train(tmp_path / "run", "data=arrays", f"data.path={tmp_path}/x.npz", "likelihood=gaussian")


@pytest.mark.parametrize(("arguments", "line"), [
    (["kl.weight=1e308"], "kl.weight=1e+308: at most 1e+30 is allowed"),
    (["trainer.threads=1000000"], "trainer.threads=1000000: at most 1024 or 'auto' is allowed"),
    (["model.hidden=[100000000000000000000]"], "model.hidden=[100000000000000000000]: less than 2.14748e+09"),
    (["=3"], "=3: has no key; KEY=VALUE is allowed"),
    (["data=arrays", f"data.path={'x' * 5000}"], "nothing is there; a path that exists is allowed"),
    (["data=arrays", "data.path='\x1b[31mred'"], "nothing is there; a path that exists is allowed"),
])  # fmt: skip
def test_settings_beyond_reason_are_refused(tmp_path, arguments, line):
    found = refused(*arguments, f"hydra.run.dir={tmp_path}/run")
    assert line in found
    assert "\x1b" not in found


def test_the_flag_of_a_sweep_may_stand_anywhere(tmp_path):
    done = command("seed=1", *TINY, "-m", f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0" / "summary.json").is_file()
