"""How much of a run is not its steps: `python -m benchmarks.stalls [--device cuda]`, at default settings.

Times what the loop waits for (validation, pictures, the log, checkpoints) within the whole of training, from the first
step to the last; the device has finished its steps before each clock starts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.throughput import RESULTS, machine, quiet
from vae_cli.config import compose
from vae_cli.report import Reporter
from vae_cli.training import run
from vae_cli.training.trainer import Trainer

CASES = {
    "vae-train": (),
    "vae-train data=mnist": ("data=mnist",),
    "vae-train data=mnist model=conv": ("data=mnist", "model=conv"),
}
WAITS = {
    "all of training": (Trainer, "fit"),
    "validation": (Trainer, "_validate"),
    "pictures": (Reporter, "pictures"),
    "log": (Trainer, "_log"),
    "checkpoints": (Trainer, "save"),
}
FIT = Trainer.fit
HEAD = "| run | training, s | validation | pictures | log | checkpoints | together |\n|---|---|---|---|---|---|---|\n"


@contextmanager
def timed(seconds: Counter[str], device: torch.device) -> Iterator[None]:
    """Add up the seconds of each wait, from the start of training to its end."""
    patches, training = [], [False]
    for name, (owner, method) in WAITS.items():
        own = getattr(owner, method)

        def clocked(self: Any, *given: Any, name: str = name, call: Any = own, **named: Any) -> Any:
            if device.type == "cuda":
                torch.cuda.synchronize()
            start, counts = time.perf_counter(), training[0] or call is FIT
            training[0] |= call is FIT
            try:
                return call(self, *given, **named)
            finally:
                seconds[name] += counts * (time.perf_counter() - start)  # type: ignore[assignment]
                training[0] &= call is not FIT

        patches.append(patch.object(owner, method, clocked))
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def shares(overrides: tuple[str, ...], device: torch.device) -> dict[str, float]:
    """Return the seconds of training, and the share of each wait in them."""
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, quiet(), timed(seconds, device):
        run.train(compose(*overrides, f"trainer.device={device.type}"), Path(folder) / "run")
    seconds["validation"] -= seconds["pictures"]  # which are drawn within it
    whole = seconds.pop("all of training")
    return {"seconds": whole} | {name: seconds[name] / whole for name in list(WAITS)[1:]}


def row(name: str, found: list[dict[str, float]]) -> str:
    """Return a line of the table: medians, and of their sum the least and the most."""
    parts = [statistics.median(each[key] for each in found) for key in list(WAITS)[1:]]
    sums = sorted(sum(each[key] for key in list(WAITS)[1:]) for each in found)
    told = " | ".join(f"{part:.2%}" for part in parts)
    seconds = statistics.median(each["seconds"] for each in found)
    return f"| `{name}` | {seconds:.1f} | {told} | {statistics.median(sums):.2%} ({sums[0]:.2%} to {sums[-1]:.2%}) |\n"


def main() -> None:
    """Measure every case, and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = torch.device(args.device)
    shares((*CASES["vae-train"], "trainer.epochs=5"), device)  # warm
    rows = [row(name, [shares(given, device) for _ in range(args.repeats)]) for name, given in CASES.items()]
    about = (
        f"Written by `python -m benchmarks.stalls --device {device.type}`, {args.repeats} repeats. {machine(device)}"
    )
    text = f"# What the loop waits for beside its steps\n\n{about}\n\n{HEAD}{''.join(rows)}"
    (RESULTS / f"stalls-{device.type}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
