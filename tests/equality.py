"""Did a change of the code change its numbers? Every pair of options, 50 steps on the digits, to the bit.

python -m tests.equality record FILE      # before
python -m tests.equality compare FILE     # after: prints what differs, and by how much
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import warnings
from pathlib import Path

from tests.conftest import train
from tests.test_pairwise import OPTIONS, cover, refused
from vae_cli.errors import UserError

STEPS = 50
COMMON = (
    "data=digits", "seed=1", f"trainer.steps={STEPS}", "trainer.log_every=1", "trainer.batch_size=64",
    "model.latent_dim=4", "optimizer.lr=1e-3", "trainer.threads=1", "trainer.device=cpu",
    "trainer.log_likelihood_samples=16", "trainer.log_likelihood_examples=50",
)  # fmt: skip
CHANGING = ("seconds", "per_second")  # what the clock says
GROUPS = {group: options for group, options in OPTIONS.items() if group not in ("data", "extra")}


def run(chosen: dict[str, str]) -> dict:
    """Train a combination; return its losses and its summary, or the line that refuses it."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            summary = train(folder, *(f"{group}={option}" for group, option in chosen.items()), *COMMON)
        except UserError as error:
            return {"refused": str(error)}
        lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line][:STEPS]
    numbers = {key: value for key, value in summary.items() if not key.endswith(CHANGING)}
    return {"losses": losses, "summary": numbers}


def differences(then: dict, now: dict) -> list[str]:
    """Return what differs of a combination, each with how far it is off."""
    if "refused" in then or "refused" in now:
        one, other = then.get("refused", "trained"), now.get("refused", "trained")
        return [] if (one == "trained") == (other == "trained") else [f"{one!r} is now {other!r}"]
    off = max((abs(a - b) for a, b in zip(then["losses"], now["losses"], strict=True)), default=0.0)
    found = [f"losses are off by {off:.3g}"] * (off > 0.0)
    for key in sorted({*then["summary"], *now["summary"]}):
        a, b = then["summary"].get(key), now["summary"].get(key)
        numbers = all(isinstance(each, float) for each in (a, b))
        if a != b and not (numbers and math.isnan(a) and math.isnan(b)):
            found.append(f"{key}: {a} is now {b}")
    return found


def main(what: str, file: str) -> None:
    """Record the numbers of every combination in a file, or hold them against it."""
    path = Path(file)
    if what == "record":
        combinations = [one for one in cover(GROUPS) if not refused(one)]
        path.write_text(json.dumps([{"chosen": one, **run(one)} for one in combinations], indent=1))
        print(f"{len(combinations)} combinations")
        return
    recorded, differing = json.loads(path.read_text()), 0
    for then in recorded:
        if found := differences(then, run(then["chosen"])):
            differing += 1
            print("-".join(then["chosen"].values()), *found[:5], sep="\n    ")
    print(f"{differing} of {len(recorded)} combinations differ")


if __name__ == "__main__":
    main(*sys.argv[1:])
