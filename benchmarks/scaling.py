"""How training scales over processes: `python -m benchmarks.scaling [--ranks 1 2 4] [--device cpu]`.

Starts torchrun on this machine for each number of ranks, one CPU thread (or one GPU) each, and measures the whole loop
of vae-train: examples/s with a batch that stays (strong scaling) and with one that grows with the ranks (weak), and the
time of an all-reduce of the gradient's size alone. Repeats alternate. From one rank's step time and the stated links a
model predicts the efficiency at numbers of ranks that are not here; docs/scaling.md explains it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.throughput import RESULTS, machine, quiet

CASES = {
    "mlp-400": ["model=mlp", "model.hidden=[400]"],
    "mlp-2048": ["model=mlp", "model.hidden=[2048]"],
    "conv-32-64": ["model=conv", "model.channels=[32,64]"],
}
COMMON = ["data=synthetic", "data.n=20000", "data.test=0", "data.valid=500", "trainer.log_likelihood_samples=0"]
BATCH = 128
# Ranks, bytes/s of one rank's share of a ring, seconds a hop: stated, not measured.
LINKS = {
    "cpu": {
        "8 hosts, 25 Gb/s": (8, 3.1e9, 30e-6),
        "64 hosts, 25 Gb/s": (64, 3.1e9, 30e-6),
        "512 hosts, 25 Gb/s": (512, 3.1e9, 30e-6),
    },
    "cuda": {
        "8 GPUs, NVLink 450 GB/s": (8, 450e9, 3e-6),
        "64 GPUs, 400 Gb/s each": (64, 50e9, 8e-6),
        "512 GPUs, 400 Gb/s each": (512, 50e9, 8e-6),
    },
}
STATED = ((0.3e-3, 2.6e6), (1e-3, 2.6e6), (1e-3, 25e6), (10e-3, 25e6), (10e-3, 250e6), (100e-3, 2.5e9))


def worker(case: str, batch: int, steps: int, device: str) -> None:
    """As one of the ranks: train, and let the first print what it measured."""
    import torch

    from vae_cli.config import compose
    from vae_cli.system import parallel, ranks
    from vae_cli.system.device import choose_device
    from vae_cli.training import run
    from vae_cli.training.trainer import Trainer

    found: dict[str, Any] = {}
    fit = Trainer.fit

    def timed(trainer: Trainer) -> None:
        start, before = time.perf_counter(), trainer.step
        fit(trainer)
        found["seconds"] = time.perf_counter() - start
        found["examples_per_second"] = (trainer.step - before) * trainer.batch_size / found["seconds"]
        found["bytes"] = sum(p.numel() * p.element_size() for p in trainer.vae.parameters())
        found["all_reduce_seconds"] = all_reduce_seconds(found["bytes"], trainer.device)
        found["ranks"], found["machine"] = parallel.count(), machine(trainer.device)

    Trainer.fit = timed  # type: ignore[method-assign]
    run._finish = lambda *_: {}  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder, quiet():
        settings = [*COMMON, *CASES[case], f"trainer.steps={steps}", f"trainer.batch_size={batch}"]
        settings += [f"trainer.device={device}", "trainer.threads=1"]
        torch.set_num_threads(1)
        parallel.start(choose_device(device))
        run.train(compose(*settings), Path(folder) / "run")
    if ranks.rank() == 0:
        print("FOUND", json.dumps(found), flush=True)


def all_reduce_seconds(size: int, device: Any) -> float:
    """Return the least time of ten all-reduces of so many bytes; 0 for one rank."""
    import torch
    import torch.distributed as dist

    from vae_cli.system import parallel

    if parallel.count() == 1:
        return 0.0
    gradient, least = torch.zeros(size // 4, device=device), float("inf")
    for _ in range(10):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradient)
        float(gradient[0])  # waits for the device
        least = min(least, time.perf_counter() - start)
    return least


def launch(case: str, ranks: int, batch: int, steps: int, device: str) -> dict[str, Any]:
    """Start the ranks, and return what the first printed."""
    own = ["-m", "benchmarks.scaling", "--worker", case, "--batch", batch, "--steps", steps, "--device", device]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *own]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if not lines:
        raise SystemExit(done.stdout + done.stderr)
    return json.loads(lines[0].removeprefix("FOUND "))


def efficiency(step: float, size: float, ranks: int, bandwidth: float, hop: float) -> float:
    """Return the predicted share of N times one rank's rate that N ranks reach, each with a batch of its own.

    A ring all-reduce sends 2 (N − 1)/N times the gradient and takes 2 (N − 1) hops, of which large rings keep
    2 log2 N (trees); half of the step, the backward pass, is there to hide it (Li et al. 2020).
    """
    hops = 2 * min(ranks - 1, max(1, (ranks - 1).bit_length()))
    exchange = 2 * (ranks - 1) / ranks * size / bandwidth + hops * hop
    return step / (step + max(0.0, exchange - 0.5 * step))


def measure(cases: list[str], counts: list[int], steps: int, repeats: int, device: str) -> list[dict[str, Any]]:
    """Return a row for each case, number of ranks and way to choose the batch."""
    rows: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for _ in range(repeats):
        for case in cases:
            for ranks in counts:
                for batch in dict.fromkeys((BATCH, BATCH * ranks)):
                    rows.setdefault((case, ranks, batch), []).append(launch(case, ranks, batch, steps, device))
    return [summary(*key, found) for key, found in rows.items()]


def summary(case: str, ranks: int, batch: int, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians and the spread of the repeats."""
    rates = [each["examples_per_second"] for each in found]
    row = {"case": case, "ranks": ranks, "batch": batch, "median": statistics.median(rates), "least": min(rates)}
    row |= {"largest": max(rates), "bytes": found[0]["bytes"], "machine": found[0]["machine"]}
    return row | {"all_reduce_seconds": min(each["all_reduce_seconds"] for each in found)}


def table(rows: list[dict[str, Any]], device: str) -> str:
    """Return measured and predicted rows as Markdown."""
    alone = {row["case"]: row for row in rows if row["ranks"] == 1}
    lines = [
        "# Scaling over processes",
        "",
        f"Written by `python -m benchmarks.scaling`. {rows[0]['machine']} a rank.",
        "",
    ]
    lines += ["Measured, on loopback; examples/s: median (least … largest) of the repeats.", ""]
    lines += [
        "| case | ranks | batch in all | examples/s | against one rank | gradient, MB a step | all-reduce alone, ms |"
    ]
    lines += ["|---" * 7 + "|"]
    for row in rows:
        ratio = row["median"] / alone[row["case"]]["median"] if row["case"] in alone else float("nan")
        lines.append(
            f"| {row['case']} | {row['ranks']} | {row['batch']} | {row['median']:,.0f} ({row['least']:,.0f} … "
            f"{row['largest']:,.0f}) | {ratio:.2f} | {row['bytes'] / 1e6:.1f} | {1e3 * row['all_reduce_seconds']:.2f} |"
        )
    steps = [(f"{case} (measured)", BATCH / row["median"], row["bytes"]) for case, row in alone.items()]
    lines += ["", f"**Predicted**, not measured: efficiency with {BATCH} examples a rank on the stated links.", ""]
    lines += predictions(steps, LINKS[device])
    lines += ["", "**Predicted** for GPUs, from *assumed* steps of one rank and sizes of a gradient:", ""]
    lines += predictions([("assumed", step, size) for step, size in STATED], LINKS["cuda"])
    return "\n".join(lines) + "\n"


def predictions(steps: list[tuple[str, float, float]], links: dict[str, tuple[int, float, float]]) -> list[str]:
    """Return a table of predicted efficiencies."""
    lines = ["| step of one rank | ms | gradient, MB | " + " | ".join(links) + " |", "|---" * (len(links) + 3) + "|"]
    for name, step, size in steps:
        shares = [f"{efficiency(step, size, *link):.2f}" for link in links.values()]
        lines.append(f"| {name} | {1e3 * step:.2f} | {size / 1e6:.1f} | {' | '.join(shares)} |")
    return lines


def main() -> None:
    """Measure, print the table, and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--worker", choices=CASES)
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.batch, arguments.steps, arguments.device)
        return
    rows = measure(arguments.case, arguments.ranks, arguments.steps, arguments.repeats, arguments.device)
    text = table(rows, arguments.device)
    print(text)
    stem = RESULTS / f"scaling-{arguments.device}"
    stem.with_suffix(".json").write_text(json.dumps(rows, indent=2) + "\n")
    stem.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
