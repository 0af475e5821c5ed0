"""Memory and rate of training on data of any size, by where they are: `python -m benchmarks.data`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from benchmarks.throughput import machine, quiet

RESULTS = Path(__file__).parent / "results" / "data.md"
SIZES = (10_000, 1_000_000, 10_000_000)
PACKED = 1_000_000  # examples of the largest set that is packed as well
STEPS = 600  # of 128 examples with the default MLP
COMMON = [
    "data.valid=1000", f"trainer.steps={STEPS}", "trainer.validate_every=1000", "trainer.log_likelihood_samples=0",
    "trainer.final_samples=1",
]  # fmt: skip


def write(path: Path, n: int) -> None:
    """Write n smooth 28×28 pictures as an .npy, a part at a time."""
    from vae_cli.data.synthetic import synthetic

    some = synthetic(n=10_000, shape=[28, 28], classes=0).train.x[:].numpy()
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(n, 28, 28))
    for start in range(0, n, len(some)):
        out[start : start + len(some)] = some[: n - start]
    out.flush()


class Watch(threading.Thread):
    """Keeps the largest anonymous memory of this process: what no file backs, so that it cannot be given up."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self.over = 0, threading.Event()

    def run(self) -> None:
        """Look every 20 ms."""
        while not self.over.wait(0.02):
            fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.peak = max(self.peak, int(fields["RssAnon"].split()[0]) * 1024)


def one(overrides: list[str]) -> dict[str, float]:
    """Train in this process; return the peak of its memory in MiB, seconds to the first step, and examples/s."""
    from vae_cli.config import compose
    from vae_cli.training import run

    watch, times = Watch(), [time.perf_counter()]
    watch.start()
    with tempfile.TemporaryDirectory() as folder, quiet():
        config = compose(*COMMON, *overrides)
        summary = run.train(config, Path(folder) / "run", accepted=lambda: times.append(time.perf_counter()))
    watch.over.set()
    rate = summary["steps"] * config.trainer.batch_size / summary["train_seconds"]
    return {"anon": watch.peak / 2**20, "start": times[1] - times[0], "rate": rate}


def apart(overrides: list[str]) -> dict[str, float]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data", *overrides], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def cases(folder: Path, n: int) -> dict[str, list[str]]:
    """Return how a set of n examples in a folder can be trained on."""
    array = ["data=arrays", f"data.path={folder}/x.npy", "data.test=1000"]
    found = {"arrays, resident": [*array, "trainer.resident=true"], "arrays, mapped": array}
    if n > PACKED:
        return {"arrays, mapped": array}
    subprocess.run(
        [sys.executable, "-m", "vae_cli.commands.pack", "pack", *array, "data.valid=1000", f"out={folder}/shards"],
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return found | {"shards": ["data=shards", f"data.path={folder}/shards", "data.valid=null"]}


def main() -> None:
    """Measure, print and keep the table."""
    if sys.argv[1:]:
        print(json.dumps(one(sys.argv[1:])))
        return
    rows = []
    for n in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "x.npy", n)
            for name, overrides in cases(Path(folder), n).items():
                found = apart(overrides)
                rows.append(f"| {n:,} | {name} | {found['anon']:,.0f} | {found['start']:.1f} | {found['rate']:,.0f} |")
                print(rows[-1], flush=True)
    head = (
        f"# Data of any size\n\nWritten by `python -m benchmarks.data`. {machine(torch.device('cpu'))}, "
        f"webdataset {version('webdataset')}.\n\nThe default MLP, {STEPS} steps of 128 examples of 28×28 bytes, in a "
        "process of its own. The memory is the peak of what no file backs (RssAnon), torch and the model included: "
        "files that are mapped count in the page cache, which the system gives up where it needs room. An .npy below "
        "256 MiB, the smallest here, is in memory either way.\n\n"
        "| examples | data | memory, MiB | to the first step, s | examples/s |\n|---|---|---|---|---|\n"
    )
    RESULTS.write_text(head + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
