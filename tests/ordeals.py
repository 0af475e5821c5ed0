"""What a run must survive, for as long as is asked: kills, thousands of jobs in one process, damaged files.

Tests undergo them for seconds; `python -m benchmarks.reliability` for as long as one likes, and counts.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from hydra.experimental.callback import Callback
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.processes import Command, command, wait_for
from vae_cli import finished
from vae_cli.config import compose
from vae_cli.data.arrays import arrays
from vae_cli.data.images import images
from vae_cli.report import Reporter
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError
from vae_cli.training.step import Step

TINY = ["data=synthetic", "data.n=200", "data.shape=[12,12]", "model.latent_dim=4", "trainer.steps=2"]
KILLED = [*TINY, "trainer.steps=1500", "trainer.checkpoint_every=25", "trainer.validate_every=40",
          "trainer.log_every=20", "trainer.log_likelihood_samples=8"]  # fmt: skip
SOAKED = [*TINY, "data.n=60", "model.hidden=[16]", "trainer.log_likelihood_samples=8"]
Reader = tuple[Path, bytes, Callable[[], object]]  # of a file: where, what is in it while it is whole, how it is read
DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    lambda piece, chance: bytes(byte ^ (1 << chance.randrange(8)) for byte in piece),
    lambda piece, chance: chance.randbytes(len(piece)),
    lambda piece, chance: bytes(chance.choices(b"0123456789(),{}' -", k=len(piece))),
    lambda piece, chance: bytes(len(piece)),
    lambda piece, chance: b"\xff" * len(piece),
    lambda piece, chance: b"",
    lambda piece, chance: piece * 2,
    lambda piece, chance: piece[::-1],
)
NEVER = 600.0  # seconds that a run left alone takes at most
HANGS = 20  # seconds after which reading a file counts as hanging


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return a run's last weights."""
    return checkpoint.load(folder / "checkpoints" / "last.pt")["model"]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether weights are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def numbers(folder: Path) -> dict[str, float]:
    """Return a run's final numbers."""
    found = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in found.items() if "/" in key}


def history(folder: Path) -> list[dict[str, float]]:
    """Return the lines of a run's metrics.jsonl, less their timings."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "per_second" not in key} for line in found]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return a run's curves as TensorBoard shows them, less their timings."""
    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "per_second" not in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same(folder: Path, whole: Path) -> None:
    """Assert that a run ended as the undisturbed one: weights, metrics, curves and final numbers, to the bit."""
    assert equal(weights(folder), weights(whole)), folder
    assert history(folder) == history(whole), folder
    assert curves(folder) == curves(whole), folder
    assert numbers(folder) == numbers(whole), folder


def survive(folder: Path, kills: int, *settings: str, chance: random.Random, a_run: int = 20) -> Counter[str]:
    """Kill runs at random moments, so often in all, each started again until it ends; hold what they came to.

    Moments are drawn from the whole life of a process, as long as this machine takes for an undisturbed one: start-up,
    training, saving, the final evaluation, the report. Every run must end equal to the undisturbed one, and one kill
    at least must have come between the first checkpoint and the summary: kills go on until then.

    Args:
        folder: of all of them.
        kills: how many there must be at least.
        settings: beyond those that all have.
        chance: draws the moments.
        a_run: kills that fall upon one run at most; it is then left to end.
    """
    arguments = [*KILLED, *settings, "resume=auto"]
    longest = _seconds([*arguments, f"hydra.run.dir={folder}/whole"])
    found: Counter[str] = Counter()
    while found["kills"] < kills or not found["amid training"]:
        run = folder / f"killed-{found['runs']}"
        last = found["kills"] + min(a_run, max(1, kills - found["kills"]))
        while not _ends(run, arguments, chance.uniform(0.0, longest) if found["kills"] < last else NEVER, found):
            pass
        found["runs"] += 1
        assert_same(run, folder / "whole")
    return found


def _seconds(arguments: list[str]) -> float:
    """Run a command to its end and return how long it took, without the start of the server that it is forked from."""
    assert command("--help").returncode == 0
    start = time.monotonic()
    assert command(*arguments).returncode == 0
    return time.monotonic() - start


def _ends(run: Path, arguments: list[str], seconds: float, found: Counter[str]) -> bool:
    """Start a run or go on with it, and kill it after so long; return whether it ended before."""
    with Command(*arguments, f"hydra.run.dir={run}") as started:
        wait_for(lambda: not started.running, seconds, must=False)
        with suppress(ProcessLookupError):  # it may have ended just now
            if started.running:
                started.signal("SIGKILL")
        done = started.done()
    killed = done.returncode == -signal.SIGKILL
    assert killed or done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    if killed:
        found["kills"] += 1
        found["amid training"] += _saved_and_not_ended(run)
        found["while a checkpoint was written"] += any((run / "checkpoints").glob("*.partial"))
        found["after training"] += (run / "summary.json").is_file()
    return not killed


def _saved_and_not_ended(run: Path) -> bool:
    """Whether there is something to go on from, and something left to do."""
    return (run / "checkpoints" / "last.pt").is_file() and not (run / "summary.json").is_file()


@contextmanager
def killed_after(steps: int) -> Iterator[None]:
    """Leave the process of training after so many steps, as a kill would: nothing more is written."""
    call, left = Step.__call__, [steps]

    def counted(self: Step, *arguments: Any, **named: Any) -> None:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        call(self, *arguments, **named)

    Step.__call__ = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        Step.__call__ = call


class Probe(Callback):
    """Writes down, after each job of a sweep, what its process holds; Hydra calls it."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.jobs: list[Any] = []

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        """Append a line to the file."""
        held = {
            "settings": sum(job.cfg is not None or job.hydra_cfg is not None for job in self.jobs),  # of earlier jobs
            "bytes": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": len(os.listdir("/proc/self/task")),
            "files": sum(len(files) for _, _, files in os.walk(os.environ["TMPDIR"])),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(held) + "\n")
        self.jobs.append(job_return)


def full_after(size: int) -> None:
    """Let no file of this process grow beyond so many bytes: what a full disk does, told by the same error."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def draw_every(jobs: int) -> None:
    """Draw figures and report in every so manieth job of this process alone: they are most of a short job's time."""
    for name, nth in (("figures", count()), ("page", count())):
        draw = getattr(Reporter, name)

        def seldom(self: Reporter, *arguments: Any, draw: Any = draw, nth: Iterator[int] = nth) -> None:
            if next(nth) % jobs == 0:
                draw(self, *arguments)

        setattr(Reporter, name, seldom)


def soak(folder: Path, jobs: int, *, chance: random.Random, sampled: int, drawn: int) -> dict[str, Any]:
    """Run so many short jobs (a multiple of 4) in one process, and some of them again alone, which must give the same.

    Args:
        folder: of all of them.
        jobs: how many.
        chance: which are run again.
        sampled: how many are run again.
        drawn: figures are drawn in every so manieth job.

    Returns:
        what the process held after the first tenth of the jobs and at the end, and how fast it grew.
    """
    seeds, combinations = (
        jobs // 4,
        [(likelihood, weight) for likelihood in ("bernoulli", "gaussian") for weight in (1, 4)],
    )
    sweep = [*SOAKED, "likelihood=bernoulli,gaussian", "kl.weight=1,4", f"seed=range({seeds})"]
    probe = [f"+hydra.callbacks.probe._target_={__name__}.Probe", f"+hydra.callbacks.probe.path={folder}/held.jsonl"]
    (folder / "temporary").mkdir(parents=True)
    environment = {**os.environ, "TMPDIR": str(folder / "temporary")}
    arguments = ["-m", *sweep, *probe, f"hydra.sweep.dir={folder}/sweep"]
    started = time.monotonic()
    done = command(*arguments, environment=environment, before=partial(draw_every, drawn), timeout=24 * 3600)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    for job in chance.sample(range(jobs), min(sampled, jobs)):
        likelihood, weight = combinations[job // seeds]
        own = [f"likelihood={likelihood}", f"kl.weight={weight}", f"seed={job % seeds}"]
        alone = command(*SOAKED, *own, f"hydra.run.dir={folder}/alone-{job}")
        assert alone.returncode == 0, alone.stderr
        assert_same(folder / "sweep" / str(job), folder / f"alone-{job}")
    kinds = {frozenset(path.name for path in (folder / "sweep" / str(job)).iterdir()) for job in range(0, jobs, drawn)}
    assert len(kinds) == 1, kinds
    held = [json.loads(line) for line in (folder / "held.jsonl").read_text().splitlines()]
    assert len(held) == jobs
    return _growth(held) | {"jobs": jobs, "seconds": seconds, "alone": min(sampled, jobs)}


def _growth(held: list[dict[str, int]]) -> dict[str, Any]:
    """Return what is held from the first tenth of the jobs on: at first, at last, and bytes gained for each job."""
    few = max(1, len(held) // 10)
    first, last = (
        {key: median(line[key] for line in part) for key in held[0]} for part in (held[few : 2 * few], held[-few:])
    )
    between = max(1, len(held) - 2 * few)
    return {"first": first, "last": last, "bytes_a_job": (last["bytes"] - first["bytes"]) / between}


def damaged(data: bytes, chance: random.Random) -> bytes:
    """Return bytes with something wrong: flipped, overwritten, cut out, repeated or turned round, or without their end.

    Half of the damage falls upon the first 200 bytes, where headers are.
    """
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 4, 16])):
        end = min(len(found), 200) if chance.random() < 0.5 else len(found)
        at, size = chance.randrange(max(1, end)), chance.choice([1, 1, 2, 4, 8, 64])
        found[at : at + size] = chance.choice(DAMAGES)(found[at : at + size], chance)
    return bytes(found[: chance.randrange(len(found) + 1)] if chance.random() < 0.1 else found)


def fuzz(path: Path, valid: bytes, read: Callable[[], object], seconds: float, chance: random.Random) -> Counter[str]:
    """Write damaged variants of a file for so long, and read each: it is taken, or refused in one line.

    Raises:
        AssertionError: an error of more lines, or none at all.
        TimeoutError: reading hangs.
    """
    found: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        path.write_bytes(damaged(valid, chance))
        found["tried"] += 1
        with _no_longer_than(HANGS):
            try:
                read()
            except UserError as error:
                found["refused"] += 1
                line = str(error)
            else:
                line = ""
        assert "\n" not in line, line
    return found


@contextmanager
def _no_longer_than(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _arrays(suffix: str) -> Callable[[Path], Reader]:
    def reader(folder: Path) -> Reader:
        path = folder / f"damaged.{suffix}"
        x, y = np.arange(320, dtype=np.uint8).reshape(20, 4, 4), np.arange(20) % 2
        np.save(path, x) if suffix == "npy" else np.savez(path, x=x, y=y)
        return path, path.read_bytes(), lambda: arrays(path=str(path), labels=None, missing="refused")

    return reader


def _checkpoints(folder: Path) -> Reader:
    path = folder / "damaged.pt"
    state = {"model": {"w": torch.randn(40, 10), "n": torch.arange(5)}, "step": 7, "pair": (1, [2.5])}
    checkpoint.save(state, path)

    def read() -> None:
        found = checkpoint.load(path)
        assert checkpoint.digest(found) == checkpoint.digest(state), "damage passed for a checkpoint"

    return path, path.read_bytes(), read


def _settings(folder: Path) -> Reader:
    path = folder / ".hydra" / "config.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(compose(*TINY).plain))
    return path, path.read_bytes(), lambda: finished.settings_of(folder)


def _pictures(folder: Path) -> Reader:
    path = folder / "pictures" / "damaged.png"
    path.parent.mkdir()
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(path)
    return (
        path,
        path.read_bytes(),
        partial(images, path=str(path.parent), size=8, color="rgb", resize="crop", on_broken="stop"),
    )


READERS: dict[str, Callable[[Path], Reader]] = {
    ".npy arrays": _arrays("npy"), ".npz archives": _arrays("npz"), "checkpoints": _checkpoints,
    "settings of a run": _settings, "pictures": _pictures,
}  # fmt: skip
