"""How long 12 jobs take one after another, and two at a time under joblib: `python -m benchmarks.sweeps`."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.throughput import cpu_name

RESULTS = Path(__file__).parent / "results" / "sweeps.md"
REPEATS = 3
SWEEP = [sys.executable, "-m", "vae_cli.commands.train", "-m", "sweep=grid", "trainer.epochs=100"]
LAUNCHERS = {"basic": [], "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]}
GOAL = 0.65


def seconds(launcher: list[str]) -> float:
    """Return the wall time of the sweep, start-up and figures included, with threads as they come by default."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    with tempfile.TemporaryDirectory() as folder:
        command = [*SWEEP, *launcher, f"hydra.sweep.dir={folder}/sweep"]
        start = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
        return time.perf_counter() - start


def main() -> None:
    """Measure, print and keep the table."""
    times: dict[str, list[float]] = {name: [] for name in LAUNCHERS}
    for _ in range(REPEATS):
        for name, launcher in LAUNCHERS.items():
            times[name].append(seconds(launcher))
            print(f"{name}: {times[name][-1]:.1f} s", flush=True)
    ratios = [joblib / basic for basic, joblib in zip(*times.values(), strict=True)]
    lines = [f"# Sweeps\n\nWritten by `python -m benchmarks.sweeps`. {cpu_name()}, {os.cpu_count()} cores.\n"]
    lines += ["`vae-train -m sweep=grid trainer.epochs=100`: 12 jobs on the digits, from the command to its end.\n"]
    lines += ["| launcher | seconds, median | least | largest |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} |"
        for name, found in times.items()
    ]
    lines += [f"\njoblib with two workers takes {statistics.median(ratios):.2f} of the basic launcher's time "
              f"({min(ratios):.2f} to {max(ratios):.2f} in {REPEATS} pairs; the goal is {GOAL})."]  # fmt: skip
    RESULTS.write_text("\n".join(lines) + "\n")
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
