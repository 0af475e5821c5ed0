"""Posterior collapse under a decoder that sees x, and free bits that mend it, on MNIST.

    VAE_DATA=FOLDER python -m benchmarks.collapse                      # every run that is missing, then table and figure
    VAE_DATA=FOLDER python -m benchmarks.collapse --only factorised    # one run alone, to have several at once

The same conv encoder and decoder, 20 latent dimensions, 9,000 training digits, each pixel drawn anew at each epoch.
Writes benchmarks/results/collapse.md and docs/collapse_autoregressive.png; the numbers are those of each run's
summary.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

import vae_cli
from vae_cli.report import pictures

COMMON = [
    "data=mnist",
    "model=conv",
    "trainer.batch_size=64",
    "trainer.final_samples=2",
    "trainer.log_likelihood_samples=128",
    "trainer.log_likelihood_examples=500",
]
RUNS = {
    "factorised": ["likelihood=bernoulli", "trainer.epochs=30"],
    "autoregressive": ["likelihood=autoregressive", "trainer.epochs=10"],
    "free_bits": ["likelihood=autoregressive", "kl.free_bits=0.5", "trainer.epochs=10"],
}
FOLDER = Path("outputs") / "benchmarks" / "collapse"
TABLE = Path(__file__).parent / "results" / "collapse.md"
FIGURE = Path(__file__).parents[1] / "docs" / "collapse_autoregressive.png"


def train(name: str) -> None:
    """Train by vae-train, in a process of its own, unless it is there already."""
    if not (FOLDER / name / "summary.json").is_file():
        settings = [*COMMON, *RUNS[name], f"hydra.run.dir={FOLDER / name}"]
        subprocess.run([sys.executable, "-m", "vae_cli.train", *settings], check=True)
