"""Several processes train what one would, on gloo and loopback; what is lost goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import ranks as compositions
from tests.conftest import ROOT, command
from tests.processes import Command, started, wait_for
from vae_cli.system import checkpoint, liveness, parallel, ranks
from vae_cli.system.errors import UserError
from vae_cli.training.pace import refuse_uneven
from vae_cli.training.state import own_sums

SMALL = ["data=synthetic", "data.n=400", "data.shape=[12,12]", "model.hidden=[32]", "trainer.device=cpu"]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")} | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}


def launched(*arguments):
    """Start ranks on this machine; the end of the block is theirs."""
    return python("-m", "torch.distributed.run", "--local-addr=127.0.0.1", *arguments)


def python(*arguments):
    """Start Python in the ranks' environment, with one stream for all that is said."""
    return started(*arguments, environment=ENVIRONMENT, stderr=subprocess.STDOUT)


def finished(process):
    """Wait for the end of what was started, and return what it said and its exit code."""
    return process.communicate(timeout=300)[0], process.returncode


def torchrun(*arguments):
    """Let ranks on this machine come to their end."""
    with launched(*arguments) as process:
        return finished(process)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def assert_equal(folder, other, tolerance=1e-4, steps=20):
    """Compare all that two runs wrote of their first steps, but the time it took."""
    mine, theirs = ([line for line in lines(each) if line["step"] <= steps] for each in (folder, other))
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        for line in (a, b):
            line.pop("train/examples_per_second", None)
        assert a == pytest.approx(b, rel=tolerance, abs=min(tolerance, 1e-4)), (Path(folder).name, a["step"])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The compositions, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    with python("-m", "tests.ranks", folder) as process:
        said, code = finished(process)
    assert code == 0, said
    return folder


@pytest.mark.parametrize(("count", "names"), [(2, list(compositions.CASES)), (4, ["elbo", "beta_tc", "parts"])])
def test_ranks_train_what_one_process_would(tmp_path, alone, count, names):
    said, code = torchrun("--standalone", f"--nproc-per-node={count}", "-m", "tests.ranks", tmp_path, *names)
    assert code == 0, said
    for name in names:
        assert_equal(alone / name, tmp_path / name, tolerance=1e-2 if name == "bf16" else 1e-4)
    if "intervals" in names:
        assert_equal(tmp_path / "intervals", tmp_path / "resumed", tolerance=0.0)
        assert len(checkpoint.load(tmp_path / "intervals" / "checkpoints" / "last.pt")["sums"]) == count


def test_a_run_of_two_ranks_is_one_run_and_goes_on_with_one(tmp_path):
    run = tmp_path / "run"
    arguments = [
        "-m",
        "vae_cli.commands.train",
        *SMALL,
        "trainer.log_every=5",
        "trainer.validate_every=2",
        "trainer.steps=20",
    ]
    said, code = torchrun("--standalone", "--nproc-per-node=2", *arguments, f"hydra.run.dir={run}")
    assert code == 0, said
    assert said.count("report: ") == 1
    assert len(list((run / "tensorboard").glob("events.*"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert command(*arguments[2:-1], "trainer.steps=40", f"hydra.run.dir={tmp_path / 'one'}").returncode == 0
    assert command(f"resume={run}", "trainer.steps=40").returncode == 0
    assert_equal(run, tmp_path / "one", steps=40)
    before, after = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "run"))
    assert after["test/elbo"] == pytest.approx(before["test/elbo"], rel=1e-4)


def test_a_rank_that_is_killed_ends_the_run_and_torchrun_goes_on_with_it(tmp_path):
    arguments = [*SMALL, "trainer.steps=4000", "trainer.checkpoint_every=100", "trainer.log_likelihood_samples=0"]
    run = tmp_path / "run"
    launch = ["--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "vae_cli.commands.train"]
    with launched(*launch, *arguments, f"hydra.run.dir={run}") as process:
        kill_one_rank(process, run)
        said, code = finished(process)
    assert code == 0, said
    assert (
        "vae-train: error: another rank was lost (the launcher's log says which); the last checkpoint is kept" in said
    )
    assert "going on at step" in said
    assert "Traceback" not in said
    steps = [line["step"] for line in lines(run) if "train/loss" in line]
    assert steps == list(range(50, 4001, 50))


def kill_one_rank(process, run):
    """Kill the last of torchrun's ranks without warning, once there is a checkpoint."""
    wait_for(lambda: (run / "checkpoints" / "last.pt").is_file() or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)


def free_port():
    """Return a port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.mark.slow
def test_one_of_three_machines_loses_its_rank_and_the_run_ends_as_if_it_had_not(tmp_path):
    arguments = [*SMALL, "trainer.steps=3000", "trainer.batch_size=66", "trainer.checkpoint_every=100", "seed=3"]
    run, one = tmp_path / "run", tmp_path / "one"
    launch = [
        "--nnodes=3", "--nproc-per-node=1", "--max-restarts=2", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=three", "-m", "vae_cli.commands.train",
    ]  # fmt: skip
    with ExitStack() as ends:
        machines = [ends.enter_context(launched(*launch, *arguments, f"hydra.run.dir={run}")) for _ in range(3)]
        kill_one_rank(machines[-1], run)
        said, codes = zip(*map(finished, machines), strict=True)
    assert codes == (0, 0, 0), said
    assert "going on at step" in "".join(said)
    assert command(*arguments, f"hydra.run.dir={one}").returncode == 0
    assert_equal(run, one, steps=300)
    found, wanted = (json.loads((folder / "summary.json").read_text())["test/elbo"] for folder in (run, one))
    assert found == pytest.approx(wanted, rel=0.01)


def test_ranks_of_other_settings_are_refused(tmp_path):
    start = (
        f"exec {sys.executable} -m vae_cli.commands.train {' '.join(SMALL)} trainer.steps=2 seed=$RANK hydra.run.dir="
    )
    said, code = torchrun(
        "--standalone", "--nproc-per-node=2", "--no-python", "bash", "-c", f"{start}{tmp_path / 'run'}"
    )
    assert code != 0
    assert "vae-train: rank 1: error: seed=1: rank 0 has 0; ranks need the same settings" in said


def test_ranks_of_other_data_are_refused(tmp_path):
    x = np.random.default_rng(0).random((100, 1, 8, 8), dtype=np.float32)
    np.save(tmp_path / "0.npy", x)
    np.save(tmp_path / "1.npy", x[::-1])
    own = f"data=arrays data.path={tmp_path}/$RANK.npy hydra.run.dir={tmp_path}/run {' '.join(SMALL[3:])}"
    start = f"exec {sys.executable} -m vae_cli.commands.train {own} trainer.steps=2 model=mlp"
    said, code = torchrun("--standalone", "--nproc-per-node=2", "--no-python", "bash", "-c", start)
    line = "error: data: rank 1 has other examples than rank 0 (train examples); ranks need the same data"
    assert code != 0
    assert f"vae-train: {line}" in said
    assert f"vae-train: rank 1: {line}" in said


def rank(number, folder, port, *arguments, before=None):
    """Start a rank by hand; rank 0 is where the others meet."""
    own = {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    environment = ENVIRONMENT | own | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return Command(*SMALL, *arguments, f"hydra.run.dir={folder}", environment=environment, before=before)


def hear_interrupts():
    """Take Ctrl-C as in a terminal, where the tests themselves run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def be_impatient():
    liveness.SILENCE = 3.0


@pytest.mark.parametrize(("sent", "code", "line"), [
    (None, 1, "error: rank 1 has given no sign of life for 3 s: stopped, or on a machine out of reach"),
    ("SIGTERM", 75, "interrupted: rank 1 has given no sign of life for 5 s: stopped, or on a machine out of reach"),
])  # fmt: skip
def test_a_rank_that_is_stopped_is_told_and_does_not_hold_the_others(tmp_path, sent, code, line):
    port, run = free_port(), tmp_path / "run"
    own = ["trainer.steps=100000", "trainer.checkpoint_every=50"]
    before = None if sent else be_impatient
    with rank(0, run, port, *own, before=before) as first, rank(1, run, port, *own, before=before) as second:
        wait_for(lambda: (run / "checkpoints" / "last.pt").is_file() or not first.running)
        second.signal("SIGSTOP")
        if sent:
            first.signal(sent)
        done = first.done(timeout=60)
    assert (done.returncode, done.stderr) == (code, f"vae-train: {line}; the last checkpoint is kept\n")


@pytest.mark.parametrize(("sent", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_rank_that_waits_for_the_others_to_begin_is_interrupted(tmp_path, sent, code):
    with rank(0, tmp_path / "run", port := free_port(), "trainer.steps=2", before=hear_interrupts) as first:
        wait_for(lambda: listening(port) or not first.running)
        first.signal(sent)
        done = first.done(timeout=60)
    assert done.returncode == code
    assert done.stderr == "vae-train: interrupted while it waited for the other ranks to begin\n"


def listening(port):
    """Whether somebody of this machine listens on a port."""
    found = [path.read_text() for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    return any(
        f":{port:04X} " in line.split(" 0A ")[0] for text in found for line in text.splitlines() if " 0A " in line
    )


def test_ranks_go_on_with_their_own_sums_and_others_with_the_mean(monkeypatch):
    sums = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert own_sums(sums).tolist() == [2.0, 3.5]
    monkeypatch.setattr(parallel, "count", lambda: 2)
    assert own_sums(sums).tolist() == [3.0, 5.0]


def test_a_batch_that_does_not_divide_is_refused():
    refuse_uneven(128, 1, 4)
    with pytest.raises(
        UserError, match=r"trainer.batch_size=100: .* 3 ranks × trainer.accumulate=2; 96, 102 are allowed"
    ):
        refuse_uneven(100, 2, 3)


def test_parts_that_are_not_the_whole_are_refused(tmp_path):
    from tests.conftest import train

    for own, named in ((["objective=beta_tc"], "this objective"), (["kl.free_bits=0.1"], "kl.free_bits")):
        with pytest.raises(UserError, match=f"trainer.accumulate=2: {named} joins the examples of a batch"):
            train(tmp_path / named, *SMALL, "trainer.steps=2", "trainer.accumulate=2", *own)


def test_a_sweep_under_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    found = command("-m", "seed=1,2")
    assert found.returncode == 1
    assert found.stderr.strip().startswith("vae-train: error: -m: a sweep under torchrun is not allowed")


def test_ranks_compare_the_source_of_the_whole_package(tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "__file__", str(tmp_path / "system" / "ranks.py"))
    (tmp_path / "model").mkdir()
    found = set()
    for text in ("a = 1", "a = 2"):
        (tmp_path / "model" / "mlp.py").write_text(text)
        found.add(ranks.code())
    assert len(found) == 2
