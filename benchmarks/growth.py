"""What grows with a run's length, a sweep's jobs and the data's size: `python -m benchmarks.growth`."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks.step import trainer
from benchmarks.throughput import machine, quiet
from vae_cli.config import compose
from vae_cli.data.batches import pixels
from vae_cli.data.batches.resident import Resident
from vae_cli.data.examples import Examples
from vae_cli.system.machine import flushing
from vae_cli.training import run

RESULTS = Path(__file__).parent / "results" / "growth.md"
SMALL = ["data=synthetic", "data.n=2000", "data.shape=[12,12]", "trainer.log_likelihood_samples=0"]
STEPS = 10_000
JOBS = 20
AT_LEAST = 128 * 300  # examples of each repeat, over several epochs where there are fewer
SIZES = (10_000, 100_000, 1_000_000, 10_000_000)


def memory() -> float:
    """Return the resident memory of this process, MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(*overrides: str) -> None:
    """Train into a folder that goes again."""
    with tempfile.TemporaryDirectory() as folder, quiet():
        run.train(compose(*SMALL, *overrides), Path(folder) / "run")


def over_steps() -> list[float]:
    """Return the memory at each tenth of a run."""
    found: list[float] = []
    from vae_cli.training.step import Step

    call, count = Step.__call__, [0]

    def counted(self: Step, *arguments: object, **named: object) -> None:
        call(self, *arguments, **named)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] % (STEPS // 10) == 0:
            found.append(memory())

    Step.__call__ = counted  # type: ignore[method-assign,assignment]
    train(f"trainer.steps={STEPS}")
    Step.__call__ = call  # type: ignore[method-assign]
    return found


def over_jobs() -> tuple[list[float], list[int], list[int]]:
    """Return memory, open files and threads after each job of a sweep in one process."""
    found: tuple[list[float], list[int], list[int]] = ([], [], [])
    for _ in range(JOBS):
        train("trainer.steps=50")
        for kept, value in zip(
            found, (memory(), len(os.listdir("/proc/self/fd")), threading.active_count()), strict=True
        ):
            kept.append(value)  # type: ignore[arg-type]
    return found


def over_size() -> dict[int, list[float]]:
    """Return microseconds an example, by the data's size: of the order and its batches, and of whole steps."""
    with flushing():
        return {n: over_batches(n) for n in SIZES}


def over_batches(n: int) -> list[float]:
    """Return the medians over epochs of what an example of n costs, without and with the training step of the MLP."""
    x = torch.randint(0, 256, (n, 28, 28), dtype=torch.uint8)
    data = Resident(Examples(x), pixels.transform("bernoulli", 256), torch.device("cpu"))
    made = trainer()
    made.train = made.stepper.data = data
    times: tuple[list[float], list[float]] = ([], [])
    for epoch in range(5 * max(1, AT_LEAST // n)):
        start = time.perf_counter()
        order = data.order(1, epoch)
        ordering = (time.perf_counter() - start) / n
        batches = order[:AT_LEAST].split(128)[:-1]
        for found, work in zip(times, (data.batch, lambda index: made._update(index[None])), strict=True):
            start = time.perf_counter()
            for index in batches:
                work(index)
            found.append(1e6 * (ordering + (time.perf_counter() - start) / len(batches) / 128))
    return [statistics.median(found) for found in times]


def main() -> None:
    """Measure, print and keep the tables."""
    train("trainer.steps=50")  # what is imported and allocated once
    steps, (memories, files, threads) = over_steps(), over_jobs()
    lines = [f"# What grows\n\nWritten by `python -m benchmarks.growth`. {machine(torch.device('cpu'))}.\n"]
    lines += [f"Memory over a run of {STEPS:,} steps, MiB at each tenth: {', '.join(f'{m:.0f}' for m in steps)}.\n"]
    lines += [f"Memory over {JOBS} jobs in one process, MiB after each: {', '.join(f'{m:.0f}' for m in memories)}; "
              f"open files {files[0]} … {files[-1]}, threads {threads[0]} … {threads[-1]}.\n"]  # fmt: skip
    lines += ["µs an example, the epoch's order included, batch 128:\n"]
    lines += ["| 28×28 examples | to gather and binarise | a training step of the MLP 784-400-20 |", "|---|---|---|"]
    lines += [f"| {n:,} | {batch:.2f} | {step:.2f} |" for n, (batch, step) in over_size().items()]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
