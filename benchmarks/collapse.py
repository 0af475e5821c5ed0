"""Posterior collapse under a decoder that sees x, and free bits that mend it, on MNIST.

    VAE_DATA=FOLDER python -m benchmarks.collapse                    # the runs that are missing, then table and figure
    VAE_DATA=FOLDER python -m benchmarks.collapse --only factorised  # one run alone, to have several at once

The same conv encoder and decoder, 20 latent dimensions, 9,000 training digits, each pixel drawn anew at each epoch. A
run that was stopped goes on where it was. Writes benchmarks/results/collapse.md and
docs/collapse_autoregressive.png; the numbers are those of each run's summary.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

import vae_cli
from vae_cli.report import pictures

COMMON = ["data=mnist", "model=conv", "trainer.batch_size=64", "trainer.log_likelihood_samples=128"]
RUNS = {
    "factorised": ["likelihood=bernoulli", "trainer.epochs=30"],
    "autoregressive": ["likelihood=autoregressive", "trainer.epochs=10"],
    "free_bits": ["likelihood=autoregressive", "kl.free_bits=0.5", "trainer.epochs=10"],
}
FOLDER = Path("outputs") / "benchmarks" / "collapse"
TABLE = Path(__file__).parent / "results" / "collapse.md"
FIGURE = Path(__file__).parents[1] / "docs" / "collapse_autoregressive.png"
HEAD = """# Posterior collapse under a decoder that sees x

Written by `python -m benchmarks.collapse`, which says what was trained. Nats for one test digit; ± is the standard
error over digits, of one training seed each. log p(x) is a lower bound from K importance samples."""
COLUMNS = ("run", "settings", "epochs", "log p(x)", "K", "ELBO", "KL", "active units", "mutual information", "warning",
           "training s")  # fmt: skip


def train(name: str, settings: Sequence[str]) -> None:
    """Train by vae-train, in a process of its own, or go on with a run that was stopped."""
    if not (FOLDER / name / "summary.json").is_file():
        chosen = [*COMMON, *RUNS[name], *settings, "resume=auto", f"hydra.run.dir={FOLDER / name}"]
        subprocess.run([sys.executable, "-m", "vae_cli.commands.train", *chosen], check=True)


def summary_of(name: str) -> dict[str, Any]:
    """Return the numbers of a finished run."""
    found: dict[str, Any] = json.loads((FOLDER / name / "summary.json").read_text())
    return found


def row(name: str, numbers: dict[str, Any]) -> str:
    """Return a line of the table."""
    settings = " ".join(f"`{each}`" for each in RUNS[name] if not each.startswith("trainer."))
    warning = next((each for each in numbers["warnings"] if each.startswith("posterior collapse")), "none")
    cells = (
        name,
        settings,
        f"{numbers['epochs']:.1f}",
        f"{numbers['test/log_likelihood']:.2f} ± {numbers['test/log_likelihood_stderr']:.2f}",
        numbers["test/log_likelihood_samples"],
        f"{numbers['test/elbo']:.2f}",
        f"{numbers['test/kl']:.2f}",
        numbers["test/active_units"],
        f"{numbers['test/mutual_information']:.2f}",
        warning,
        f"{numbers['train_seconds']:.0f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    head = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    return "\n".join([*head, *(row(name, numbers) for name, numbers in results.items())])


def curve(name: str) -> tuple[list[float], list[float], list[float]]:
    """Return epochs, and KL and ELBO of training batches, nats."""
    lines = [json.loads(line) for line in (FOLDER / name / "metrics.jsonl").read_text().splitlines()]
    seen = [line for line in lines if "train/kl" in line]
    return [line["epoch"] for line in seen], [line["train/kl"] for line in seen], [line["train/elbo"] for line in seen]


def figure(names: Sequence[str]) -> None:
    """Draw the curves of KL and ELBO, and below them draws of x for draws of z from the prior, a panel a run."""
    drawing = plt.figure(figsize=(10, 6.5), layout="constrained")
    above, below = drawing.subfigures(2, 1)
    kl, elbo = above.subplots(1, 2)
    for name in names:
        epochs, kls, elbos = curve(name)
        kl.plot(epochs, kls, label=name)
        elbo.plot(epochs, elbos, label=name)
    kl.set(title="KL(q(z|x) ‖ p(z)), training batches", xlabel="epoch", ylabel="nats", ylim=(0, None))
    elbo.set(title="ELBO, training batches", xlabel="epoch", ylabel="nats", ylim=(-140, -80))
    kl.legend()
    for panel, name in zip(below.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        torch.manual_seed(0)
        model = vae_cli.load(FOLDER / name, device="cpu")
        x = model.sample(40, mean=False).view(5, 8, *model.vae.shape)
        panel.imshow(pictures.grid(x, model.spec))
        panel.set_title(f"{name}: draws of p(x|z), z from the prior")
        panel.axis("off")
    drawing.savefig(FIGURE, dpi=110)


def main() -> None:
    """Train what is missing, then write table and figure of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(RUNS), help="runs, by commas")
    parser.add_argument("settings", nargs="*", help="further settings of each run, such as trainer.epochs=3")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(RUNS):
        parser.error(f"--only={unknown.pop()}: {', '.join(RUNS)} are allowed")
    for name in only:
        train(name, arguments.settings)
    results = {name: summary_of(name) for name in RUNS if (FOLDER / name / "summary.json").is_file()}
    text = table(results)
    TABLE.write_text(f"{HEAD}\n\n{text}\n")
    figure(list(results))
    print(text)


if __name__ == "__main__":
    main()
