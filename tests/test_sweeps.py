"""Sweeps on real launchers: joblib, submitit, Ray and Optuna run here as a person would run them."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from joblib import cpu_count

from tests.conftest import ROOT, TINY, command, configure, train
from tests.processes import fresh, logged, started, wait_for
from vae_cli.commands import sweep
from vae_cli.config.words import EXTRAS
from vae_cli.report import Reporter
from vae_cli.system.lock import locked
from vae_cli.training import run
from vae_cli.training.pruning import MedianRule

SMALL = [*TINY, "trainer.log_likelihood_samples=0"]
LONG = [*SMALL, "trainer.steps=200000", "trainer.log_every=10", "trainer.checkpoint_every=20"]
THREADS = """
import os
from pathlib import Path

import torch

from vae_cli.config.types import NonNegative
from vae_cli.kl import Constant


class Told(Constant):
    def __init__(self, *, weight: NonNegative, free_bits: NonNegative, folder: str):
        super().__init__(weight=weight, free_bits=free_bits)
        if weight == 9:
            raise RuntimeError("broken on purpose")
        Path(folder, str(os.getpid())).write_text(str(torch.get_num_threads()))
"""


@pytest.fixture
def without_pictures(monkeypatch):
    for name in ("figures", "pictures", "codes", "page"):
        monkeypatch.setattr(Reporter, name, lambda *_: None)


def needs(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Arguments with which each job leaves its number of threads in a file, and a function that reads them."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    folder = tmp_path / "threads"
    (tmp_path / "mine" / "kl").mkdir(parents=True)
    folder.mkdir()
    (tmp_path / "mine" / "told.py").write_text(THREADS)
    (tmp_path / "mine" / "kl" / "told.yaml").write_text(f"_target_: told.Told\nfolder: {folder}\n")
    return ["-m", "--config-dir", tmp_path / "mine", "kl=told"], lambda: [int(p.read_text()) for p in folder.iterdir()]


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_every_missing_extra_is_told_with_the_command_that_installs_it():
    code = """
import sys
sys.modules["hydra_plugins"] = None  # as where none is installed
from vae_cli.commands import train
for chosen in sys.argv[1].split():
    sys.argv = ["vae-train", "-m", chosen]
    try:
        train.main()
    except SystemExit as end:
        print(end)
"""
    chosen = " ".join([*EXTRAS, "sweep=optuna"])
    done = subprocess.run([sys.executable, "-c", code, chosen], cwd=ROOT, capture_output=True, text=True)
    wanted = [*EXTRAS.items(), ("hydra/sweeper=optuna", "optuna")]
    assert done.stdout.splitlines() == [
        f"vae-train: error: {option}: not installed; pip install 'vae-cli[{extra}]' brings it"
        for option, extra in wanted
    ]
    assert done.stderr == ""


@pytest.mark.parametrize(("arguments", "line"), [
    (["sweep=seeds"], "sweep=seeds: has no effect on a single run; with -m it is a sweep"),
    (["trainer.prune=3"], "trainer.prune: has no effect on a single run, which has no siblings; -m makes a sweep"),
    (["-m", "seed=1,2", "resume=auto"],
     "resume=auto: needs a folder that stays the same from start to start; give hydra.sweep.dir=FOLDER"),
    (["-m", "seed=1,2", "--cfg", "job"], "--cfg: shows the settings of one run; leave -m out"),
])  # fmt: skip
def test_what_would_have_no_effect_is_told(tmp_path, arguments, line):
    done = command(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"vae-train: error: {line}\n")
    assert not list(tmp_path.rglob(".hydra"))


def test_a_sweep_does_not_begin_where_another_is(tmp_path):
    folder = tmp_path / "sweep"
    train(folder / "0", *SMALL)
    (folder / "0" / ".hydra").mkdir()
    (folder / "0" / ".hydra" / "config.yaml").write_text("")
    second = command("-m", "seed=1", *SMALL, f"hydra.sweep.dir={folder}")
    line = f"hydra.sweep.dir={folder}: holds a sweep already; go on with it by resume=auto, or choose another folder"
    assert (second.returncode, second.stderr) == (1, f"vae-train: error: {line}\n")


@pytest.mark.parametrize(("option", "jobs"), [("seeds", 5), ("grid", 12)])
def test_the_ready_sweeps_have_the_jobs_they_name(tmp_path, option, jobs):
    """The jobs are counted, not trained."""
    code = """
import sys
from vae_cli.commands import train
from vae_cli.training import run
run.train = lambda *_, **__: print("trained") or {"train/elbo": 0.0}
train.main()
"""
    arguments = ["-m", f"sweep={option}", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.count("trained") == jobs, done.stderr
    assert done.returncode == 0


@needs("hydra_plugins.hydra_joblib_launcher")
def test_joblib_runs_jobs_beside_one_another_and_lists_what_failed(tmp_path, told):
    arguments, threads = told
    sweep = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "kl.weight=-1,1,9"]
    done = fresh(*arguments, *sweep, *SMALL, f"hydra.sweep.dir={tmp_path}/sweep")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3:] == [
        "vae-train: error: 2 jobs of the sweep failed",
        f"{tmp_path}/sweep/0: kl.weight=-1: at least 0 is allowed",
        f"{tmp_path}/sweep/2: broken on purpose",
    ]
    assert "Traceback" in (tmp_path / "sweep" / "2" / "error.txt").read_text()
    assert "Traceback" not in done.stderr
    assert "valid/elbo" in summary(tmp_path / "sweep" / "1")
    assert set(threads()) == {max(1, cpu_count() // 2)}


@needs("hydra_plugins.hydra_joblib_launcher")
def test_an_interrupted_sweep_leaves_no_process_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "sweep"
    sweep = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2", *LONG, f"hydra.sweep.dir={folder}"]
    with started("-m", "vae_cli.commands.train", *sweep, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: len(list(folder.glob("*/checkpoints/last.pt"))) == 2 or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        workers = [int(path.read_text()) for path in folder.glob("*/.lock")]
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=120)
        wait_for(lambda: not any(map(alive, workers)), seconds=30)
    assert process.returncode == 75
    *kept, auto, where = errors.rsplit(" ", 2)
    assert kept[0].startswith("vae-train: interrupted; go on with: vae-train -m hydra/launcher=joblib")
    assert auto == "resume=auto"
    assert (ROOT / where.strip().removeprefix("hydra.sweep.dir=")).resolve() == folder
    assert len(workers) == 2


@needs("hydra_plugins.hydra_joblib_launcher")
def test_the_workers_of_a_killed_sweep_save_and_end_and_it_goes_on(tmp_path):
    folder = tmp_path / "sweep"
    sweep = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2,3", *LONG,
             f"hydra.sweep.dir={folder}"]  # fmt: skip
    with started("-m", "vae_cli.commands.train", *sweep, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: len(list(folder.glob("*/checkpoints/last.pt"))) == 2 or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        workers = [int(path.read_text()) for path in folder.glob("*/.lock")]
        process.kill()
        done = fresh(*sweep, "resume=auto", "trainer.steps=1", "trainer.log_likelihood_samples=0")
        assert not any(map(alive, workers))
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    assert all((folder / str(job) / "summary.json").is_file() for job in range(3))
    assert "going on at step" in (folder / "0" / "train.log").read_text()


def test_a_job_that_is_still_trained_elsewhere_is_left_alone(tmp_path):
    folder = tmp_path / "sweep"
    with locked(folder / "0"):
        done = command("-m", "seed=1", *SMALL, f"hydra.sweep.dir={folder}", before=be_impatient)
    line = f"{folder}/0: another process ({os.getpid()}) trains there"
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"job 0 left alone: {line}", f"vae-train: error: {line}; start the sweep again when it has ended"
    ]  # fmt: skip
    assert not (folder / "0" / "error.txt").exists()


def be_impatient():
    sweep.PATIENCE = 0.5


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@needs("hydra_plugins.hydra_submitit_launcher")
def test_a_preempted_job_of_submitit_is_requeued_and_goes_on(tmp_path, told):
    """As Slurm would: SIGTERM as a warning, which submitit passes over, then the signal that requeues."""
    arguments, threads = told
    folder = tmp_path / "sweep"
    lengthy = ["trainer.steps=4000", "trainer.validate_every=2000", "model.hidden=[16]", "trainer.batch_size=32"]
    sweep = ["hydra/launcher=submitit_local", "seed=1", *SMALL, *lengthy, "trainer.log_every=10",
             "trainer.checkpoint_every=100000", f"hydra.sweep.dir={folder}"]  # fmt: skip
    with started("-m", "vae_cli.commands.train", *arguments, *sweep, stdout=subprocess.DEVNULL) as process:
        wait_for(lambda: logged(folder / "0") or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        job = int((folder / "0" / ".lock").read_text())
        os.kill(job, signal.SIGTERM)
        os.kill(job, signal.SIGUSR2)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    (step,) = re.findall(r"going on at step (\d+)", (folder / "0" / "train.log").read_text())
    assert 0 < int(step) < 4000
    train(tmp_path / "whole", *SMALL, *lengthy, "seed=1")
    assert summary(folder / "0")["test/elbo"] == summary(tmp_path / "whole")["test/elbo"]
    assert set(threads()) == {1}


@needs("hydra_plugins.hydra_ray_launcher")
def test_ray_runs_jobs_and_lists_what_failed(tmp_path, told):
    arguments, threads = told
    sweep = ["hydra/launcher=ray", "kl.weight=-1,1", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = fresh(*arguments, *sweep, *SMALL)
    assert done.returncode == 1
    assert f"{tmp_path}/sweep/0: kl.weight=-1: at least 0 is allowed" in done.stderr
    assert "valid/elbo" in summary(tmp_path / "sweep" / "1")
    assert set(threads()) == {1}


@needs("optuna")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the SQLAlchemy that it needs
def test_a_study_goes_on_where_it_was_and_outlives_failures(tmp_path):
    import optuna

    folder = tmp_path / "sweep"
    search = ["-m", "sweep=optuna", *SMALL, "kl.weight=choice(-1,1)", "optimizer.lr=interval(1e-3,2e-3)",
              "model.latent_dim=4", "trainer.batch_size=64", f"hydra.sweep.dir={folder}"]  # fmt: skip
    first = fresh(*search, "hydra.sweeper.n_trials=3")
    storage = f"sqlite:///{folder}/study.db"
    study = optuna.load_study(study_name="vae-cli", storage=storage)
    failed = [trial.number for trial in study.trials if trial.params["kl.weight"] == -1]
    assert failed
    assert len(failed) < 3
    for trial in study.trials:
        if trial.number in failed:
            assert trial.state == optuna.trial.TrialState.FAIL
        else:
            assert trial.value == summary(folder / str(trial.number))["valid/elbo"]
    assert first.returncode == 1
    assert f"vae-train: error: {len(failed)} jobs of the sweep failed" in first.stderr
    assert "Traceback" not in first.stderr
    assert f"best of {3 - len(failed)} trials: valid/elbo={study.best_value:.3f} with" in first.stdout

    killed = study.ask()  # as a process that is killed leaves it: asked for, not told
    rate = killed._suggest("optimizer.lr", study.trials[0].distributions["optimizer.lr"])
    killed._suggest("kl.weight", study.trials[0].distributions["kl.weight"])
    second = fresh(*search, "hydra.sweeper.n_trials=5")
    trials = optuna.load_study(study_name="vae-cli", storage=storage).trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    assert all(trial.state.is_finished() for trial in trials)
    assert trials[3].params["optimizer.lr"] == rate
    assert len({trial.params["optimizer.lr"] for trial in trials}) == 5
    assert [f"job {k}: " in second.stdout for k in range(5)] == [False] * 3 + [True] * 2
    assert (folder / "3" / "train.log").exists() or (folder / "3" / "error.txt").exists()

    other = fresh(*search, "kl.free_bits=0.1")
    assert other.stderr == (
        f"vae-train: error: hydra.sweep.dir={folder}: holds a study of other settings (kl.free_bits=0.1); "
        "give another hydra.sweep.dir for another search\n"
    )


def leave(folder, values, *, measure="nats", stopped_by=None):
    """A finished job, as the rule sees it: valid/elbo after epochs 1, 2, …"""
    folder.mkdir(parents=True)
    lines = [{"step": k, "epoch": float(k), "valid/elbo": value} for k, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"measure": measure, "stopped_by": stopped_by}))


def rule(tmp_path, values, jobs=3, earliest=0.0):
    leave(tmp_path / "own", values)
    (tmp_path / "own" / "summary.json").unlink()
    return MedianRule(tmp_path / "own", measure="nats", jobs=jobs, earliest=earliest)


def test_the_median_rule_is_vizier_s(tmp_path):
    for name, last in (("a", -10.0), ("b", -20.0), ("c", -60.0)):
        leave(tmp_path / name, [-100.0, last])
    hopeless = rule(tmp_path, [-90.0, -61.0])
    assert hopeless(1.0) is None  # -90 is better than -100
    assert "came to -61.000 at best, less than -60.000" in hopeless(2.0)  # averages -55, -60, -80
    (tmp_path / "own" / "metrics.jsonl").write_text('{"epoch": 2.0, "step": 2, "valid/elbo": -60.0}\n')
    assert hopeless(2.0) is None  # as good as the median


def test_only_comparable_jobs_that_ran_in_full_count(tmp_path):
    leave(tmp_path / "a", [-1.0])
    leave(tmp_path / "b", [-1.0], stopped_by="prune")
    leave(tmp_path / "c", [-1.0], measure="others")
    leave(tmp_path / "d", [-1.0], stopped_by="early_stopping")
    hopeless = rule(tmp_path, [-9.0])
    assert hopeless(1.0) is None
    leave(tmp_path / "e", [-1.0])
    assert hopeless(1.0)
    hopeless.earliest = 2.0
    assert hopeless(1.0) is None


def test_a_hopeless_job_is_given_up_and_ends_as_any_other(tmp_path, capsys, without_pictures):
    settings = [*SMALL, "trainer.steps=60", "trainer.validate_every=5", "optimizer.lr=3e-3"]
    for seed in (1, 2):
        train(tmp_path / str(seed), *settings, f"seed={seed}")
        assert summary(tmp_path / str(seed))["stopped_by"] is None
    config = configure(*settings, "optimizer.lr=1e-6", "trainer.prune=2")
    found = run.train(config, tmp_path / "3", sweeping=True)
    assert found == {**found, "stopped_by": "prune"}
    assert 10 <= found["steps"] < 60
    assert summary(tmp_path / "3")["valid/elbo"] == found["valid/elbo"]
    assert "given up at epoch " in capsys.readouterr().out
    good = configure(*settings, "seed=4", "trainer.prune=2")
    assert run.train(good, tmp_path / "4", sweeping=True)["steps"] == 60


def test_the_score_may_be_the_log_likelihood_of_validation(tmp_path, without_pictures):
    found = train(tmp_path, *TINY, "score=valid/log_likelihood", "trainer.log_likelihood_samples=64")
    assert found["valid/log_likelihood"] > found["valid/elbo"]
    assert found["valid/log_likelihood_samples"] == 64
    assert found["test/log_likelihood"] != found["valid/log_likelihood"]


def test_a_launcher_that_waits_for_a_signal_gets_it_once_all_is_saved(tmp_path, monkeypatch, without_pictures):
    from vae_cli.training.step import Step

    original, seen = Step.__call__, []

    def interrupting(self, *arguments, **named):
        original(self, *arguments, **named)
        if self.summed == 3:
            for each in (signal.SIGTERM, signal.SIGUSR2):  # as Slurm sends them
                os.kill(os.getpid(), each)

    monkeypatch.setattr(Step, "__call__", interrupting)

    def handler(number, _):
        seen.append((number, (tmp_path / "checkpoints" / "last.pt").is_file()))

    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        found = train(tmp_path, *SMALL, "trainer.steps=10", "trainer.log_every=100")
    finally:
        for each, handled in before.items():
            signal.signal(each, handled)
    assert seen == [(signal.SIGTERM, True), (signal.SIGUSR2, True)]
    assert found["steps"] == 10
