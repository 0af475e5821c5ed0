"""What is typed: each mistake gets one true line, and what is told to be typed next can be."""

import shlex
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.conftest import ROOT, TINY, command, configure
from vae_cli.commands.shared import expected, refuse_misused
from vae_cli.config.types import parse_interval
from vae_cli.config.words import one_line
from vae_cli.system.errors import UserError
from vae_cli.system.output import shell_assignment

NO_COMPLETION = "--shell-completion: install=SHELL, uninstall=SHELL or query=SHELL, of bash, fish or zsh, is allowed"
MISUSED = {
    "experiment=null": "experiment=null: one option of conf/experiment is allowed (or leave it out for none)",
    "sweep=null": "sweep=null: one option of conf/sweep is allowed (or leave it out for none)",
    "debug=null": "debug=null: one option of conf/debug is allowed (or leave it out for none)",
    "model=null": "model=null: one option of conf/model is allowed (a sweep of several: -m model=A,B)",
    "hydra/launcher=null": (
        "hydra/launcher=null: one option of hydra/launcher is allowed (a sweep of several: -m hydra/launcher=A,B)"
    ),
    "+experiment=x": "+experiment=x: experiment has its place already; drop the +",
    "++model=conv": "++model=conv: model has its place already; drop the +",
    "model=mlp seed=2 model=conv": "model: given twice (mlp, conv); once is allowed",
    "--resolve": "--resolve: has no effect alone; --cfg job --resolve is allowed",
    "--shell-completion": NO_COMPLETION,
    "-sc install=tcsh": NO_COMPLETION,
    "=3": "=3: has no key; KEY=VALUE is allowed",
}


@pytest.mark.parametrize("typed", MISUSED)
def test_what_hydra_takes_amiss_gets_its_line(typed):
    with pytest.raises(UserError) as caught:
        refuse_misused(typed.split())
    assert str(caught.value) == MISUSED[typed]


def test_what_is_in_order_is_not_refused():
    refuse_misused(["--cfg", "job", "--resolve", "model=mlp", "model=mlp", "kl.weight=1", "kl.weight=2", "+own.x=1"])
    refuse_misused(["-sc", "install=bash"])


@pytest.mark.parametrize(("module", "arguments", "line"), [
    ("evaluate", ["data=digits"],
     "vae-eval: error: data: no group of options here; its settings are allowed "
     "(data.index, data.labels, data.path, data.root, data.test_path, data.valid_path)"),
    ("generate.app", ["run=x", "task=null"],
     "vae-generate: error: task=null: one option of conf/task is allowed (a sweep of several: -m task=A,B)"),
    ("generate.app", ["run=x", "task=sample,encode"],
     "vae-generate: error: task=sample,encode: several values; one is allowed (a list is [A,B], -m begins a sweep)"),
    ("train", ["optimizer.lr=interval(1,2)"],
     "vae-train: error: optimizer.lr=interval(1,2): only a search draws from an interval; -m sweep=optuna is one"),
    ("train", ["-m", "optimizer.lr=interval(1,2)"],
     "vae-train: error: optimizer.lr=interval(1,2): only a search draws from an interval; sweep=optuna is one"),
    ("train", ["-m", "hydra.sweeper.max_batch_size=0"],
     "vae-train: error: hydra.sweeper.max_batch_size=0: at least 1 is allowed"),
    ("train", ["data=arrays", "data.path='a\nb'"],
     rf"vae-train: error: data.path={ROOT}/a\nb: nothing is there; a path that exists is allowed"),
    *(("train", ["-m", f"hydra.sweep.subdir={subdir}"],
       f"vae-train: error: hydra.sweep.subdir={subdir}: each job needs a folder of its own within hydra.sweep.dir; "
       "such as ${hydra.job.num} is allowed") for subdir in ("", "x", "../${hydra.job.num}")),
])  # fmt: skip
def test_a_mistake_is_one_line(module, arguments, line):
    done = command(*arguments, module=f"vae_cli.commands.{module}")
    assert (done.returncode, done.stderr) == (1, f"{line}\n")


@pytest.mark.parametrize(("setting", "line"), [
    ("direction=foo", "direction=foo: maximize or minimize is allowed"),
    ("n_trials=0", "n_trials=0: at least 1 is allowed"),
    ("n_jobs=0", "n_jobs=0: at least 1 is allowed"),
    ("n_trials=abc", "n_trials=abc: Value 'abc' of type 'str' could not be converted to Integer"),
])  # fmt: skip
def test_a_search_refuses_what_it_cannot_do(tmp_path, setting, line):
    pytest.importorskip("optuna")
    done = command("-m", "sweep=optuna", f"hydra.sweep.dir={tmp_path}", f"hydra.sweeper.{setting}")
    assert (done.returncode, done.stderr) == (1, f"vae-train: error: hydra.sweeper.{line}\n")


def test_a_failed_job_in_a_folder_of_any_depth_is_counted(tmp_path):
    done = command("-m", "kl.weight=-1", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=a/${hydra.job.num}")
    assert done.returncode == 1
    assert f"1 jobs of the sweep failed\n{tmp_path}/a/0: kl.weight=-1: at least 0 is allowed\n" in done.stderr


def test_an_error_of_ours_keeps_its_lines_and_a_value_stays_on_its_own():
    assert one_line(UserError("a=\n\tb", "c\x1b", "d")) == "a=\\n\\tb\nc\\x1b\nd"


def test_only_errors_that_a_person_can_mend_lose_their_traceback():
    with pytest.raises(ValueError, match="must be a string or a list") as of_hydra:
        configure("model=null")
    assert expected(of_hydra.value).startswith("Config group override must be a string or a list")
    with pytest.raises(ZeroDivisionError) as ours:
        _ = 1 / 0
    assert expected(ours.value) is None
    assert expected(MemoryError()).startswith("out of memory: ")


def test_a_machine_without_memory_for_torch_is_told():
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**9, 10**9)); "
    limited += "from vae_cli.commands import train;"
    done = subprocess.run([sys.executable, "-c", f"{limited} train.main()"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("vae-train: error: out of memory: ")
    assert done.stderr.count("\n") == 1


def test_a_working_folder_that_is_gone_is_told(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = command("seed=1", cwd=gone, before=gone.rmdir)
    line = "vae-train: error: the working folder is no longer there; change to one that is\n"
    assert (done.returncode, done.stderr) == (1, line)


def test_hours_are_an_interval():
    assert parse_interval("2 hours") == (120.0, "minutes")
    assert parse_interval("1.5 epochs") == (1.5, "epochs")


@pytest.mark.parametrize("path", ["runs/a", "a run", "it's", "x=1,(2)", "[a]"])
def test_what_is_to_be_typed_next_is_read_as_it_was_meant(path):
    (typed,) = shlex.split(shell_assignment("resume", path))
    (override,) = OverridesParser.create().parse_overrides([typed])
    assert override.value() == path


@pytest.mark.parametrize("module", ["generate.app", "evaluate", "export"])
def test_a_run_that_is_not_there_is_told_before_torch_is_imported(module):
    check = f"""
import sys
from vae_cli.commands.{module} import main
try: main()
finally: assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", check, "run=nope"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.endswith(": error: run=nope: no run there (config.yaml is missing)\n")
    assert done.stderr.count("\n") == 1


def test_help_lists_the_groups_of_its_own_command():
    names = ("train", "generate.app", "evaluate")
    shown = {name: command("--help", module=f"vae_cli.commands.{name}").stdout for name in names}
    assert "\ntask: " not in shown["train"]
    assert "\nmodel: conv, ladder" in shown["train"]
    assert "\nmodel: " not in shown["generate.app"]
    assert "\ntask: anomaly, decode" in shown["generate.app"]
    assert "Groups" not in shown["evaluate"]


SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests themselves run in the background
name = sys.argv.pop()
class Interrupting:
    def find_spec(self, imported, *_):
        if imported == "hydra":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from vae_cli.commands import start
getattr(start, name)()
"""


@pytest.mark.parametrize("name", [target.partition(":")[2] for target in SCRIPTS.values()])
def test_ctrl_c_before_a_command_has_begun_is_one_line(name):
    program = [sys.executable, "-c", INTERRUPTED, name]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "-c: interrupted\n")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Two tables of binary values of the same shape, in a folder."""
    folder = tmp_path_factory.mktemp("moved")
    for seed, name in enumerate(("first", "other")):
        x = np.random.default_rng(seed).integers(0, 2, (60, 2, 4)).astype(np.uint8)
        np.savez(folder / f"{name}.npz", x=x)
    return folder


SHORT = [*TINY[3:], "trainer.log_likelihood_samples=0", "data=arrays"]


def test_a_run_goes_on_to_the_bit_where_its_data_have_moved_to(arrays, tmp_path):
    begun = [*SHORT, f"data.path={arrays}/first.npz"]
    assert command(*begun, "trainer.steps=6", f"hydra.run.dir={tmp_path}/whole").returncode == 0
    assert command(*begun, "trainer.steps=3", f"hydra.run.dir={tmp_path}/run").returncode == 0
    moved = (arrays / "first.npz").rename(tmp_path / "second.npz")
    done = command(f"resume={tmp_path}/run", f"data.path={arrays}/other.npz", "trainer.steps=5")
    line = f"vae-train: error: resume={tmp_path}/run: the data changed since the run began (train examples)\n"
    assert (done.returncode, done.stderr) == (1, line)
    done = command(f"resume={tmp_path}/run", f"data.path={moved}", "trainer.steps=5")
    assert done.returncode == 0, done.stderr
    again = moved.rename(tmp_path / "third.npz")
    auto = [*SHORT, f"data.path={again}", "trainer.steps=6", "resume=auto", f"hydra.run.dir={tmp_path}/run"]
    assert command(*auto).returncode == 0
    found, whole = (torch.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("run", "whole"))
    assert found["step"] == whole["step"] == 6
    assert all(torch.equal(found["model"][key], value) for key, value in whole["model"].items())


def test_a_setting_that_a_resumed_run_keeps_is_told_whatever_its_options(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("data: {_target_: x}\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.pt").touch()
    for setting in ("kl.warmup=3", "likelihood.scale=shared"):  # of other options than the usual ones
        done = command(f"resume={tmp_path}", setting)
        assert done.stderr == (
            f"vae-train: error: {setting}: a resumed run keeps its own settings; trainer.* (but trainer.batch_size, "
            "trainer.ema), optimizer.lr and where its data are (data.path, …) may change\n"
        )
