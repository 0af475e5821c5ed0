"""Nothing is lost: kills, damage, full disks, signals, two runs at once."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml

from tests.conftest import ROOT, TINY, command, configure, train
from tests.ordeals import assert_same, equal, full_after, history, numbers, soak, survive, weights
from tests.processes import Command, logged, wait_for
from vae_cli.config.types import parse_interval
from vae_cli.report import Reporter, reporter
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError
from vae_cli.system.lock import locked
from vae_cli.system.machine import explain_out_of_memory
from vae_cli.training.pace import checkpoint_interval

SHORT = [*TINY, "trainer.steps=24", "trainer.log_every=4", "trainer.checkpoint_every=8", "trainer.batch_size=32"]
LONG = [*TINY, "trainer.checkpoint_every=100", "trainer.log_likelihood_samples=0"]


DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 16]) + data[len(data) // 2 + 1 :],
    "text": lambda data: b"not a checkpoint",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_it_is_used(tmp_path, damage, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(whole, *SHORT)
    shutil.copytree(whole, broken)
    last = broken / "checkpoints" / "last.pt"
    last.write_bytes(DAMAGES[damage](last.read_bytes()))
    train(broken, *SHORT, resume=True)
    assert "the one before it is used, of step 16" in capsys.readouterr().out
    assert equal(weights(broken), weights(whole))
    assert history(broken) == history(whole)
    assert numbers(broken) == numbers(whole)


def test_no_flipped_bit_passes_for_a_checkpoint(tmp_path):
    torch.manual_seed(0)
    state = {"model": {"w": torch.randn(40, 10), "n": torch.arange(5)}, "step": 7, "none": None, "pair": (1, [2.5])}
    path = tmp_path / "last.pt"
    checkpoint.save(state, path)
    good, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data)
        try:
            assert checkpoint.digest(checkpoint.load(path)) == checkpoint.digest(state)
        except UserError:
            refused += 1
    assert refused > 50


def test_at_no_moment_is_there_no_whole_checkpoint(tmp_path, monkeypatch):
    """Stop at every system call that changes a name: the folder always holds a state that loads."""
    last, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    checkpoint.save({"step": 1}, last, keep=previous)
    checkpoint.save({"step": 2}, last, keep=previous)
    seen = []
    original = os.replace

    def look(*names):
        seen.append(checkpoint.load_last(tmp_path, "cpu", print)["step"])
        original(*names)
        seen.append(checkpoint.load_last(tmp_path, "cpu", print)["step"])

    monkeypatch.setattr("pathlib.Path.replace", lambda self, other: look(self, other))
    checkpoint.save({"step": 3}, last, keep=previous)
    assert seen == [2, 2, 2, 3]
    assert checkpoint.load(previous)["step"] == 2


@pytest.mark.parametrize("extra", [[], ["conditional=label", "kl=cyclical", "trainer.ema=0.9"]])
def test_a_run_that_is_killed_again_and_again_ends_as_the_undisturbed_one(tmp_path, extra):
    survive(tmp_path, 3, *extra, "trainer.steps=400", chance=random.Random(len(extra)))


def test_killed_just_before_its_end_a_run_shows_nothing_twice(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    train(tmp_path / "whole", *SHORT)
    monkeypatch.setattr(Reporter, "conclude", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", *SHORT)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "summary.json").exists()
    train(tmp_path / "run", *SHORT, resume=True)
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    survive(tmp_path, 100, chance=random.Random(0))


def test_jobs_of_one_process_leave_nothing_behind_and_are_what_each_is_alone(tmp_path):
    _assert_no_growth(soak(tmp_path, 16, chance=random.Random(0), sampled=2, drawn=8))


@pytest.mark.slow
def test_a_soak(tmp_path):
    found = soak(tmp_path, 2000, chance=random.Random(0), sampled=20, drawn=8)
    _assert_no_growth(found)
    assert found["bytes_a_job"] < 2**14


def _assert_no_growth(found):
    assert found["last"]["settings"] == 0
    assert found["last"]["descriptors"] == found["first"]["descriptors"]
    assert found["last"]["threads"] <= found["first"]["threads"] + 1  # one that still winds down
    assert found["last"]["files"] == found["first"]["files"] == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, name):
    folder = tmp_path / "run"
    with Command(*LONG, "trainer.steps=200000", f"hydra.run.dir={folder}") as started:
        wait_for(lambda: logged(folder))
        started.signal(name)
        done = started.done()
    assert done.returncode == 75
    assert done.stderr.startswith("vae-train: interrupted; go on with: vae-train resume=")
    step = checkpoint.load(folder / "checkpoints" / "last.pt")["step"]
    done = command(f"resume={folder}", f"trainer.steps={step + 3}")
    assert f"going on at step {step}" in done.stdout
    assert done.returncode == 0


def test_a_folder_has_one_run_at_a_time_and_a_dead_one_does_not_count(tmp_path):
    folder = tmp_path / "run"
    with locked(folder), pytest.raises(UserError, match=rf"another process \({os.getpid()}\) trains there"):
        train(folder, *TINY)
    code = "from pathlib import Path; from vae_cli.system.lock import locked; import os\n"
    code += f"with locked(Path({str(folder)!r})): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 9
    train(folder, *TINY)


def test_auto_begins_goes_on_and_leaves_alone_what_is_finished(tmp_path):
    folder = tmp_path / "a run"
    settings = [*SHORT, "resume=auto", f"hydra.run.dir='{folder}'"]
    assert command(*settings, "trainer.steps=16").returncode == 0
    again = command(*settings, "trainer.steps=16")
    assert again.returncode == 0
    assert again.stdout.startswith("finished already: ")
    more = command(*settings)
    assert "going on at step 16" in more.stdout
    train(tmp_path / "whole", *SHORT)
    assert equal(weights(folder), weights(tmp_path / "whole"))
    other = command(*settings, "model.latent_dim=9")
    assert other.returncode == 1
    assert "model.latent_dim=9: the run in " in other.stderr
    assert other.stderr.count("\n") == 1
    nowhere = command(*SHORT, "resume=auto", cwd=tmp_path)
    assert nowhere.stderr.startswith("vae-train: error: resume=auto: needs a folder that stays the same")


def test_a_sweep_runs_only_what_is_missing_and_lists_what_failed(tmp_path):
    sweep = ["-m", "kl.weight=-1,1,2", *TINY, "resume=auto", f"hydra.sweep.dir={tmp_path}/sweep"]
    first = command(*sweep)
    assert first.returncode == 1
    assert "Error executing job" not in first.stderr
    last = first.stderr.splitlines()[-2:]
    assert last[0] == "vae-train: error: 1 jobs of the sweep failed"
    assert last[1] == f"{tmp_path}/sweep/0: kl.weight=-1: at least 0 is allowed"
    assert (tmp_path / "sweep" / "2" / "summary.json").is_file()
    (tmp_path / "sweep" / "2" / "summary.json").unlink()
    second = command(*sweep)
    assert second.stdout.count("finished already: ") == 1
    assert second.stdout.count("going on at step 2") == 1
    assert second.stderr.splitlines()[-2:] == last


def test_a_full_disk_is_told_by_the_files_name_and_spares_the_earlier_checkpoint(tmp_path):
    folder = tmp_path / "run"
    assert command(*SHORT, "trainer.steps=8", f"hydra.run.dir={folder}").returncode == 0
    before = weights(folder)
    limit = (folder / "checkpoints" / "last.pt").stat().st_size // 2
    done = command(f"resume={folder}", "trainer.steps=24", before=partial(full_after, limit))
    assert done.returncode == 1
    assert "checkpoints/last.pt: cannot be written (File too large)" in done.stderr
    assert "Traceback" not in done.stderr
    assert equal(weights(folder), before)
    assert not list((folder / "checkpoints").glob("*.partial"))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A run as vae-train leaves it, for commands that read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(folder, *TINY)
    write_settings(folder)
    return folder


def write_settings(folder):
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*TINY).plain))


WRITERS = {
    "generate.app": [
        ["task=sample", "task.n=32"], ["task=interpolate", "task.steps=12"], ["task=encode"], ["task=anomaly"],
        ["task=sample", "task.sampler=gaussian_mixture"],
    ],
    "export": [["format=torch"], ["format=safetensors"], ["format=onnx"]],
    "evaluate": [["metrics=[elbo]"]],
}  # fmt: skip


@pytest.mark.parametrize(("module", "typed"), [(module, each) for module, all_ in WRITERS.items() for each in all_])
def test_a_full_disk_leaves_no_part_of_a_file_and_its_name_is_told(finished_run, tmp_path, module, typed):
    if "format=onnx" in typed:
        pytest.importorskip("onnxscript")
    folder, limit = tmp_path / "run", 300 if module == "evaluate" else 600
    shutil.copytree(finished_run, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    done = command(f"run={folder}", *typed, module=f"vae_cli.commands.{module}", before=partial(full_after, limit))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written (File too large)" in done.stderr
    assert str(folder) in done.stderr.splitlines()[-1]
    new = [path for path in folder.rglob("*") if path.is_file() and path not in before and path.suffix != ".log"]
    assert all(path.stat().st_size < limit for path in new)
    assert not list(folder.rglob("*.partial"))
    assert all(path.read_bytes() == content for path, content in before.items())


WRITES = re.compile(r"""(\S*)\.(?:write_text\(|write_bytes\(|open\(["'][wax])""")
SAVES = re.compile(r"\b(?:savefig|np\.savez?\w*|torch\.save|save_file|OmegaConf\.save)\((?:\{.*\}, )?(\w+)")
WRITTEN_ON = {"self.log", "self.metrics"}  # files that grow line by line


def test_every_file_is_written_whole():
    """What is written is first the file beside it that `disk.whole` gives, or a file within memory."""
    found = []
    for path in sorted((ROOT / "vae_cli").rglob("*.py")):
        text = path.read_text()
        found += [(path.name, each) for each in WRITES.findall(text) if each not in WRITTEN_ON | {"partial"}]
        found += [(path.name, each) for each in SAVES.findall(text) if each not in ("partial", "file", "text")]
    assert found == [("events.py", "_name(folder))")]  # a new file, which grows event by event


def full_output():
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)


def test_a_full_standard_output_costs_no_results(finished_run, tmp_path):
    out = tmp_path / "out"
    typed = ["task=encode", f"output={out}"]
    done = command(f"run={finished_run}", *typed, module="vae_cli.commands.generate.app", before=full_output)
    assert (done.returncode, done.stderr) == (0, "")
    assert (out / "codes.npz").is_file()


def ascii_alone():
    """What PYTHONIOENCODING=ascii makes of standard output."""
    sys.stdout.reconfigure(encoding="ascii", errors="strict")


def test_a_terminal_that_lacks_letters_loses_no_training(tmp_path):
    done = command(*TINY, f"hydra.run.dir={tmp_path}/run", before=ascii_alone)
    assert done.returncode == 0, done.stderr
    assert " +- " in done.stdout
    assert done.stdout.isascii()
    assert "report: " in done.stdout
    assert (tmp_path / "run" / "summary.json").is_file()
    help_ = command("--help", module="vae_cli.commands.evaluate", before=ascii_alone)
    assert help_.returncode == 0
    assert help_.stdout.isascii()


def test_a_table_that_cannot_be_printed_costs_nothing_else(tmp_path, monkeypatch):
    def failing(*_):
        raise UnicodeEncodeError("ascii", "±", 0, 1, "ordinal not in range(128)")

    monkeypatch.setattr(reporter.Terminal, "table", failing)
    train(tmp_path, *TINY)
    assert "the table: could not be written" in json.loads((tmp_path / "summary.json").read_text())["warnings"][-1]


@pytest.mark.parametrize("lost", ["renamed", "deleted", "another in its place"])
def test_a_folder_that_goes_while_the_run_writes_into_it_is_noticed_soon(tmp_path, monkeypatch, lost):
    from vae_cli.training.step import Step

    folder, aside, steps, call = tmp_path / "run", tmp_path / "aside", [], Step.__call__

    def counted(self, *arguments, **named):
        steps.append(1)
        if len(steps) == 10:
            folder.rename(aside)
            if lost == "deleted":
                shutil.rmtree(aside)
            if lost == "another in its place":
                folder.mkdir()
                (folder / ".lock").touch()
        call(self, *arguments, **named)

    monkeypatch.setattr(Step, "__call__", counted)
    with pytest.raises(UserError, match="run: deleted or renamed while the run wrote into it"):
        train(folder, *SHORT)
    assert len(steps) == 12  # the log interval is 4
    assert not folder.exists() if lost != "another in its place" else os.listdir(folder) == [".lock"]
    if lost == "renamed":
        monkeypatch.undo()
        write_settings(aside)
        assert train(aside, *SHORT, resume=True)["steps"] == 24


def test_a_checkpoint_does_not_bring_a_deleted_run_back(tmp_path):
    with pytest.raises(UserError, match=r"last\.pt: cannot be written"):
        checkpoint.save({"step": 1}, tmp_path / "run" / "checkpoints" / "last.pt")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no such formula")])
def test_a_run_does_without_a_figure_that_cannot_be_written(tmp_path, monkeypatch, error):
    def failing(*_):
        raise error

    monkeypatch.setattr(Reporter, "figures", failing)
    summary = train(tmp_path, *TINY, drawn=True)
    assert "test/elbo" in summary
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "summary.json").is_file()
    assert f"figures: could not be written ({error})" in (tmp_path / "train.log").read_text()


def test_who_looks_for_a_fault_sees_where_a_figure_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(reporter, "DEBUGGING", True)
    monkeypatch.setattr(Reporter, "figures", lambda *_: [][1])
    with pytest.raises(IndexError):
        train(tmp_path, *TINY, drawn=True)


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    from vae_cli.training.step import Step

    original = Step.__call__

    def poisoned(self, *arguments, **named):
        original(self, *arguments, **named)
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 16:  # after the checkpoint of step 8, and just before that of step 16
            with torch.no_grad():
                self.parameters[0][0] = float("nan")

    monkeypatch.setattr(Step, "__call__", poisoned)
    with pytest.raises(
        UserError, match="training diverged: weights not finite by step 16; the checkpoint of step 8 is kept"
    ):
        train(tmp_path, *SHORT, "trainer.log_every=100", "trainer.validate_every=100")
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 8


def test_memory_that_runs_out_is_told_with_what_to_lower():
    texts = "CUDA out of memory. Tried to allocate 20 GiB", "DefaultCPUAllocator: can't allocate memory: 9 bytes"
    for error in (MemoryError(), *map(RuntimeError, texts)):
        with pytest.raises(UserError, match=r"out of memory .*; lower trainer\.batch_size"), explain_out_of_memory():
            raise error
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory():
        raise RuntimeError("something else")


@pytest.mark.parametrize(("given", "meant"), [
    (1000, (1000.0, "steps")), ("2 epochs", (2.0, "epochs")), ("0.5epochs", (0.5, "epochs")),
    ("10 minutes", (10.0, "minutes")),
])  # fmt: skip
def test_a_checkpoint_comes_every_so_many_steps_epochs_or_minutes(given, meant):
    assert parse_interval(given) == meant
    assert configure(
        *TINY, f"trainer.checkpoint_every='{given}'" if isinstance(given, str) else f"trainer.checkpoint_every={given}"
    )


def test_checkpoints_by_epochs_and_by_the_clock(tmp_path, monkeypatch):
    saved = []
    original = checkpoint.save
    monkeypatch.setattr(
        checkpoint,
        "save",
        lambda state, path, **kw: (saved.append((path.name, state["step"])), original(state, path, **kw)),
    )
    train(tmp_path / "a", *TINY, "trainer.batch_size=45", "trainer.steps=20", "trainer.checkpoint_every=2 epochs")
    assert [step for name, step in saved if name == "last.pt"] == [6, 12, 18, 20]
    saved.clear()
    train(tmp_path / "b", *TINY, "trainer.steps=3", "trainer.checkpoint_every=0.0000001 minutes")
    assert [step for name, step in saved if name == "last.pt"] == [1, 2, 3]
    with pytest.raises(UserError, match=r"trainer\.checkpoint_every=5 parsecs"):
        configure(*TINY, "trainer.checkpoint_every=5 parsecs")


def poison(monkeypatch, steps):
    """Make the loss of some steps NaN, gradients included, each the first time it is taken."""
    from vae_cli.objective.elbo import ELBO
    from vae_cli.training.step import Step

    left, now = set(steps), [0]
    loss, call = ELBO.loss, Step.__call__

    def counted(self, *arguments, **named):
        now[0] += 1
        call(self, *arguments, **named)

    def bad(self, *arguments):
        value, extra = loss(self, *arguments)
        if now[0] in left:
            left.discard(now[0])
            return value * float("nan"), extra
        return value, extra

    monkeypatch.setattr(Step, "__call__", counted)
    monkeypatch.setattr(ELBO, "loss", bad)


def test_a_bad_step_is_skipped_where_that_is_asked_for(tmp_path, monkeypatch):
    poison(monkeypatch, [5, 6, 13])
    summary = train(tmp_path, *SHORT, "trainer.on_nan=skip")
    assert math.isfinite(summary["test/elbo"])
    found = [line for line in history(tmp_path) if "train/loss" in line]
    assert all(math.isfinite(line["train/loss"]) for line in found)
    warnings = json.loads((tmp_path / "summary.json").read_text())["warnings"]
    assert [line[:19] for line in warnings[:2]] == ["2 steps by step 8 w", "1 steps by step 16 "]


def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(tmp_path, monkeypatch):
    train(tmp_path / "seven", *SHORT, "trainer.on_nan=skip", "trainer.steps=7")
    poison(monkeypatch, [8])
    train(tmp_path / "eight", *SHORT, "trainer.on_nan=skip", "trainer.steps=8")
    states = [checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("seven", "eight")]
    for key in ("model", "optimizer"):
        assert checkpoint.digest(states[0][key]) == checkpoint.digest(states[1][key])


def test_a_skipped_step_changes_neither_average_nor_what_is_kept_beside_the_weights(tmp_path, monkeypatch):
    settings = [*SHORT, "trainer.on_nan=skip", "trainer.ema=0.9", "likelihood=gaussian", "likelihood.scale=optimal"]
    train(tmp_path / "seven", *settings, "trainer.steps=7")
    poison(monkeypatch, [8])
    train(tmp_path / "eight", *settings, "trainer.steps=8")
    states = [checkpoint.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("seven", "eight")]
    for key in ("model", "averaged"):
        assert checkpoint.digest(states[0][key]) == checkpoint.digest(states[1][key])


def test_an_interval_of_skipped_steps_has_no_means_and_ends_nothing(tmp_path, monkeypatch):
    poison(monkeypatch, [5, 6, 7, 8, 24])
    summary = train(tmp_path, *SHORT, "trainer.on_nan=skip", "trainer.log_every=2", "trainer.steps=24")
    assert math.isfinite(summary["test/elbo"])
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text
    logged = [line["step"] for line in history(tmp_path) if "train/kl_weight" in line]
    assert logged == list(range(2, 25, 2))
    assert [line["step"] for line in history(tmp_path) if "train/loss" in line] == [2, 4, *range(10, 25, 2)]


def test_steps_that_are_skipped_for_ever_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_cli.training.watch.SKIPS", 6)
    poison(monkeypatch, range(9, 1000))
    with pytest.raises(UserError, match=r"loss or gradient of 8 steps in a row not finite by step 16; the checkpoint"):
        train(tmp_path, *SHORT, "trainer.on_nan=skip", "trainer.validate_every=100")


def test_nothing_changes_where_no_step_is_bad(tmp_path):
    train(tmp_path / "stop", *SHORT)
    for way in ("skip", "rollback"):
        train(tmp_path / way, *SHORT, f"trainer.on_nan={way}")
        assert equal(weights(tmp_path / way), weights(tmp_path / "stop"))


def test_a_run_that_diverges_goes_back_where_that_is_asked_for(tmp_path, monkeypatch):
    poison(monkeypatch, [13])
    summary = train(tmp_path, *SHORT, "trainer.on_nan=rollback", "trainer.validate_every=100")
    assert summary["steps"] == 24
    warnings = json.loads((tmp_path / "summary.json").read_text())["warnings"]
    assert "gone back from step 16 to step 8 with half the learning rate (1 of 3 times at most)" in warnings[0]
    found = [line for line in history(tmp_path) if "train/loss" in line]
    assert [line["step"] for line in found] == [4, 8, 12, 16, 20, 24]
    rates = [line["train/learning_rate"] for line in found]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 5e-4])
    train(tmp_path, *SHORT, "trainer.on_nan=rollback", "trainer.steps=32", "optimizer.lr=0.01", resume=True)
    *_, last = (line["train/learning_rate"] for line in history(tmp_path) if "train/learning_rate" in line)
    assert last == pytest.approx(5e-3)


def test_a_run_that_goes_back_has_the_best_weights_of_then(tmp_path, monkeypatch):
    poison(monkeypatch, [15])
    scores = iter([-30.0, -20.0, -35.0, -33.0, -36.0, -34.0])  # at steps 5, 10, (15: back to 8,) 10, 15, 20, 24
    monkeypatch.setattr("vae_cli.training.trainer.Trainer._score", lambda self, result: next(scores))
    train(tmp_path, *SHORT, "trainer.on_nan=rollback", "trainer.validate_every=1")
    best = checkpoint.load(tmp_path / "checkpoints" / "best.pt")
    assert (best["step"], best["score"]) == (5, -30.0)


def test_a_run_that_never_stops_diverging_stops(tmp_path, monkeypatch):
    poison(monkeypatch, range(9, 1000))
    with pytest.raises(UserError, match=r"training diverged: .* not finite by step 12"):
        train(tmp_path, *SHORT, "trainer.on_nan=rollback", "trainer.validate_every=100")
    assert checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"] == 8


@pytest.mark.parametrize(("given", "meant"), [([], (1.0, "minutes")), (["trainer.on_nan=rollback"], (1000.0, "steps"))])
def test_checkpoints_come_by_the_clock_unless_a_run_may_go_back_to_one(given, meant):
    assert checkpoint_interval(configure(*TINY, *given).trainer) == meant
