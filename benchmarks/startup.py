"""How long a command takes before it does anything: `python -m benchmarks.startup`. Medians of alternating repeats."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.throughput import cpu_name

RESULTS = Path(__file__).parent / "results" / "startup.md"
REPEATS = 7
TRAIN = [sys.executable, "-m", "vae_cli.commands.train"]
COMMANDS = {
    "python": [sys.executable, "-c", "pass"],
    "import torch": [sys.executable, "-c", "import torch"],
    "--help": [*TRAIN, "--help"],
    "--cfg job": [*TRAIN, "--cfg", "job"],
    "a config error": [*TRAIN, "trainer.epoch=3"],
    "the first training step": [sys.executable, "-c", "from benchmarks.startup import first_step; first_step()"],
}


def first_step() -> None:
    """Train on the digits by vae-train, and leave the process after the first step."""
    from vae_cli.commands import train
    from vae_cli.training import step

    taken = step.Step.__call__

    def last(self: step.Step, *arguments: object, **named: object) -> None:
        taken(self, *arguments, **named)  # type: ignore[arg-type]
        sys.stdout.flush()
        os._exit(0)

    step.Step.__call__ = last  # type: ignore[method-assign,assignment]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["vae-train", f"hydra.run.dir={folder}/run"]
        train.main()


def seconds(command: list[str]) -> float:
    """Return the wall time of a command."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - start


def main() -> None:
    """Measure, print and keep the table."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(REPEATS):
        for name, command in COMMANDS.items():
            times[name].append(seconds(command))
    torch_alone = statistics.median(times["import torch"])
    lines = [f"# Start-up\n\nWritten by `python -m benchmarks.startup`. {cpu_name()}.\n"]
    lines += ["| | seconds, median | least | largest |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {statistics.median(found):.2f} | {min(found):.2f} | {max(found):.2f} |"
        for name, found in times.items()
    ]
    step = statistics.median(times["the first training step"]) - torch_alone
    lines += [f"| the first training step less `import torch` | {step:.2f} | | |"]
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
