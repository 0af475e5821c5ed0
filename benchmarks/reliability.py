"""Nothing lost, counted: `python -m benchmarks.reliability --kills 100 --jobs 2000 --seconds 300`, or some `--only`.

What is counted anew replaces its lines in `reliability.md`; the rest stays as it was counted before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.throughput import cpu_name
from tests.ordeals import READERS, fuzz, soak, survive

RESULTS = Path(__file__).parent / "results" / "reliability.json"
TABLE = Path(__file__).parent / "reliability.md"
HEAD = """# Reliability

Written by `python -m benchmarks.reliability`; the ordeals are those of [tests/ordeals.py](../tests/ordeals.py) and the
tests. A count stands here only where nothing was lost: the first loss ends the program with an error.

| ordeal | count | found | when, and under what |
|---|---|---|---|
"""
TESTS = {
    "faults made to happen": ("test_faults.py", "test_hard.py", "test_moments.py", "test_surroundings.py"),
    "crafted run folders and files": ("test_foreign_runs.py", "test_untrusted.py"),
    "searches by Hypothesis": ("test_search.py",),
}


def kills(folder: Path, args: argparse.Namespace, chance: random.Random) -> dict[str, list[str]]:
    """Kill runs at random moments."""
    found = survive(folder, args.kills, chance=chance)
    moments = ", ".join(f"{found[key]} {key}" for key in ("while a checkpoint was written", "after training"))
    same = f"each of the {found['runs']} runs they fell upon ended with the weights, metrics, curves and final numbers"
    return {
        "kill -9 at a random moment": [
            str(found["kills"]),
            f"{moments}; {same} of one that nobody disturbed, to the bit",
        ]
    }


def jobs(folder: Path, args: argparse.Namespace, chance: random.Random) -> dict[str, list[str]]:
    """Run short jobs in one process."""
    found = soak(folder, args.jobs, chance=chance, sampled=20, drawn=8)
    held = ", ".join(
        f"{found['first'][key]:g} → {found['last'][key]:g} {name}"
        for key, name in (("descriptors", "descriptors"), ("threads", "threads"), ("files", "temporary files"))
    )
    memory = f"{found['first']['bytes'] / 2**20:.0f} → {found['last']['bytes'] / 2**20:.0f} MiB resident"
    line = (
        f"from their second tenth to their last: {memory} ({found['bytes_a_job'] / 1024:.1f} KiB a job), {held}; "
        f"{found['alone']} of them, drawn at random and run again alone, gave the same to the bit; "
        f"{found['seconds'] / args.jobs:.2f} s a job"
    )
    return {"short jobs in one process": [f"{args.jobs:,}", line]}


def bytes_of_files(folder: Path, args: argparse.Namespace, chance: random.Random) -> dict[str, list[str]]:
    """Read damaged files."""
    lines = {}
    for kind, reader in READERS.items():
        path, valid, read = reader(folder)
        found = fuzz(path, valid, read, args.seconds / len(READERS), chance)
        taken = found["tried"] - found["refused"]
        line = f"{found['refused']:,} refused in one line, {taken:,} taken; no crash, no other error, none over 20 s"
        lines[f"damaged {kind}"] = [f"{found['tried']:,}", line]
    return lines


def tests(folder: Path, args: argparse.Namespace, chance: random.Random) -> dict[str, list[str]]:
    """Count the tests that make faults happen."""
    lines = {}
    for name, files in TESTS.items():
        command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider"]
        done = subprocess.run([*command, *(f"tests/{file}" for file in files)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: tests failed\n{done.stdout}{done.stderr}")
        passed = re.findall(r"(\d+) passed", done.stdout)[-1]
        lines[name] = [passed, f"each told in one line or gone on from, by {' and '.join(files)}"]
    return lines


ORDEALS: dict[str, Callable[..., dict[str, list[str]]]] = {
    "kills": kills, "jobs": jobs, "files": bytes_of_files, "tests": tests,
}  # fmt: skip


def main() -> None:
    """Undergo the ordeals, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="at least")
    parser.add_argument("--jobs", type=int, default=2000, help="a multiple of 4")
    parser.add_argument("--seconds", type=float, default=300.0, help="for all kinds of damaged files together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ORDEALS, default=list(ORDEALS))
    args = parser.parse_args()
    for name in args.only:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            lines = ORDEALS[name](Path(folder), args, random.Random(args.seed))
        under = f"{datetime.now(UTC):%Y-%m-%d}, {(time.monotonic() - start) / 60:.0f} min; {machine()}"
        _keep({key: [*line, under] for key, line in lines.items()})
    print(TABLE.read_text())


def machine() -> str:
    """Return what it ran on, in words."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"
    return f"{len(os.sched_getaffinity(0))} CPU cores ({cpu_name()}), {versions}"


def _keep(lines: dict[str, list[str]]) -> None:
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept |= lines
    RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    TABLE.write_text(HEAD + "".join(f"| {key} | {' | '.join(line)} |\n" for key, line in kept.items()))


if __name__ == "__main__":
    main()
