"""What comes at an awkward moment: signals outside the steps, a second start, a disk that refuses."""

import errno
import json
import os
import signal
import subprocess
import sys
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from tests.conftest import TINY, command, configure, train
from tests.ordeals import curves, equal, weights
from tests.processes import Command, started, wait_for
from vae_cli.commands import sweep
from vae_cli.data.batches import cache
from vae_cli.report import reporter
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError
from vae_cli.system.interruption import Interrupted, deferred
from vae_cli.training import assembly, run
from vae_cli.training.step import Step
from vae_cli.training.trainer import Trainer

SHORT = [*TINY, "trainer.steps=24", "trainer.log_every=5", "trainer.batch_size=32", "trainer.log_likelihood_samples=0"]


def interrupt(number=signal.SIGTERM):
    """Send this process a signal, which Python sees to before it goes on."""
    os.kill(os.getpid(), number)


def loading(number):
    """Let a signal come while data load."""
    run.load_dataset = lambda config: interrupt(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_while_data_load_leaves_nothing(tmp_path, number):
    done = command(*SHORT, f"hydra.run.dir={tmp_path}/run", before=partial(loading, number))
    assert (done.returncode, done.stderr) == (75, "vae-train: interrupted\n")
    assert not (tmp_path / "run").exists()


def test_a_signal_waits_for_the_end_of_an_import():
    before, reached = signal.getsignal(signal.SIGTERM), []

    def imported():
        with deferred():
            interrupt()
            reached.append("the end")

    with pytest.raises(Interrupted):
        imported()
    assert reached == ["the end"]
    assert signal.getsignal(signal.SIGTERM) is before


def interrupting(monkeypatch, owner, name, nth):
    """Let a signal come at the end of the nth call of a method."""
    original, calls = getattr(owner, name), count(1)

    def changed(self, *arguments, **named):
        found = original(self, *arguments, **named)
        if next(calls) == nth:
            interrupt()
        return found

    monkeypatch.setattr(owner, name, changed)


@pytest.mark.parametrize(("owner", "method"), [(Step, "__call__"), (Trainer, "_validate"), (Trainer, "_log")])
def test_a_run_interrupted_at_its_end_saves_and_goes_on_equal(tmp_path, monkeypatch, owner, method):
    train(tmp_path / "whole", *SHORT)
    calls = {"__call__": 24, "_validate": 2, "_log": 5}[method]  # of the whole run
    with monkeypatch.context() as patch:
        interrupting(patch, owner, method, calls)
        with pytest.raises(Interrupted):
            train(tmp_path / "cut", *SHORT)
    assert checkpoint.load(tmp_path / "cut" / "checkpoints" / "last.pt")["step"] == 24
    train(tmp_path / "cut", *SHORT, resume=True)
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_a_start_that_came_too_late_to_be_the_first_leaves_the_run_alone(tmp_path):
    """Another process trained between this one's look at the folder and its lock."""
    train(tmp_path, *SHORT)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="another process has trained there just now; start again"):
        train(tmp_path, *SHORT)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_run_killed_before_its_first_checkpoint_says_how_to_begin_anew(tmp_path):
    folder = tmp_path / "run"
    with Command(*TINY, "trainer.steps=200000", "trainer.checkpoint_every=200000", f"hydra.run.dir={folder}") as begun:
        wait_for(lambda: (folder / "metrics.jsonl").is_file())
        begun.signal("SIGKILL")
        begun.done()
    again = command(*SHORT, f"hydra.run.dir={folder}")
    assert (again.returncode, again.stderr) == (1, f"vae-train: error: hydra.run.dir={folder}: holds a run already, "
        "which saved nothing yet; begin it anew with resume=auto, or choose another folder\n")  # fmt: skip
    resumed = command(f"resume={folder}")
    assert "it saved nothing yet: begin it anew with its whole command" in resumed.stderr
    done = command(*SHORT, f"hydra.run.dir={folder}", "resume=auto")
    assert done.returncode == 0
    train(tmp_path / "whole", *SHORT)
    assert curves(folder) == curves(tmp_path / "whole")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_summary_is_made_anew(tmp_path, content):
    folder = tmp_path / "run"
    settings = [*SHORT, f"hydra.run.dir={folder}", "resume=auto"]
    assert command(*settings).returncode == 0
    (folder / "summary.json").write_text(content)
    done = command(*settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((folder / "summary.json").read_text())["steps"] == 24


def test_a_disk_that_refuses_the_shorter_curves_keeps_the_longer(tmp_path, monkeypatch):
    train(tmp_path, *SHORT, "trainer.checkpoint_every=8")
    metrics, last = tmp_path / "metrics.jsonl", tmp_path / "checkpoints" / "last.pt"
    (tmp_path / "checkpoints" / "previous.pt").replace(last)
    before = metrics.read_bytes()

    def full(path, *_):
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be written \(No space left on device\)"):
            train(tmp_path, *SHORT, resume=True)
    assert metrics.read_bytes() == before
    train(tmp_path, *SHORT, resume=True)
    train(tmp_path / "whole", *SHORT)
    assert curves(tmp_path) == curves(tmp_path / "whole")


def test_no_room_for_tensorboard_is_a_warning(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(reporter, "Board", full)
    train(tmp_path, *SHORT)
    warnings = json.loads((tmp_path / "summary.json").read_text())["warnings"]
    assert "tensorboard: could not be written ([Errno 28] No space left on device)" in warnings


def test_a_job_that_was_given_up_stays_so(tmp_path, monkeypatch):
    def cut(*_):
        raise KeyboardInterrupt

    settings = [*SHORT, "trainer.prune=2"]
    monkeypatch.setattr(assembly, "_median_rule", lambda *_: lambda epoch: "given up" if epoch > 2 else None)
    monkeypatch.setattr(run, "finish", cut)
    with pytest.raises(KeyboardInterrupt):
        run.train(configure(*settings), tmp_path, sweeping=True)
    step = checkpoint.load(tmp_path / "checkpoints" / "last.pt")["step"]
    assert 10 < step < 24
    monkeypatch.undo()
    monkeypatch.setattr(assembly, "_median_rule", lambda *_: lambda epoch: None)
    assert run.train(configure(*settings), tmp_path, resume=True, sweeping=True)["steps"] == step


@pytest.mark.parametrize("output", ["a pipe that closes", "/dev/full"])
def test_a_run_outlives_what_its_output_goes_to(tmp_path, output):
    start = ["-m", "vae_cli.commands.train", *SHORT, "trainer.steps=400", f"hydra.run.dir={tmp_path}/run"]
    pipe = output == "a pipe that closes"
    with (
        open(os.devnull if pipe else output, "w") as sink,
        started(*start, stdout=subprocess.PIPE if pipe else sink) as process,
    ):
        if pipe:
            process.stdout.readline()
            process.stdout.close()
        assert process.wait(300) == 0, process.stderr.read()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 400
    assert "400 steps of 32" in (tmp_path / "run" / "train.log").read_text()


def test_what_a_killed_process_left_in_the_cache_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_CACHE", str(tmp_path))
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    monkeypatch.setattr("os.getpid", lambda: int(dead.stdout))

    class Killed(BaseException):
        pass

    def fill(x):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(Killed):
            cache.cached(("pictures",), (4, 2), fill)
    assert [path.suffix for path in tmp_path.iterdir()] == [".partial"]
    monkeypatch.setattr("os.getpid", lambda: 1)
    cache.cached(("pictures",), (4, 2), lambda x: x.zero_())
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_a_failed_job_is_told_of_where_its_folder_has_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "_BEGUN", [tmp_path])
    monkeypatch.setattr(sweep, "_UNWRITTEN", {})
    assert sweep.failed(tmp_path / "10", UserError("the first")) == "the first"
    (tmp_path / "2").write_text("no folder")
    assert sweep.failed(tmp_path / "2", UserError("the second")) == "the second"
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / sweep.REASON).touch()
    assert sweep.failures() == [f"{tmp_path}/2: the second", f"{tmp_path}/3: ", f"{tmp_path}/10: the first"]
