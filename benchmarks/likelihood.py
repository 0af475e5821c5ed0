"""log p(x) of priors and objectives on MNIST, the same networks trained here and by pythae.

    VAE_DATA=FOLDER python -m benchmarks.likelihood                    # everything that is missing, then the table
    VAE_DATA=FOLDER python -m benchmarks.likelihood --only iwae,pythae_iwae

One gated 784-300-300-40 network, dynamic binarisation, 9,000 training digits, batch 100, Adam 1e-3, 100 epochs, the
weights with the best validation loss. Every model is scored by the same estimator (`vae_cli.metrics.log_likelihood`)
on the same binarised test digits. Results go to benchmarks/results/likelihood.json and likelihood.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from vae_cli import checkpoint, run
from vae_cli.metrics import log_likelihood
from vae_cli.randomness import seed_everything

RESULTS = Path(__file__).parent / "results" / "likelihood.json"
NETWORK = ["data=mnist", "model.hidden=[300,300]", "model.activation=gated", "model.latent_dim=40"]
TRAINING = ["trainer.batch_size=100", "trainer.validate_every=1", "trainer.log_likelihood_samples=0"]
OURS = {
    "standard": [],
    "vamp": ["prior=vamp"],
    "iwae": ["objective=iwae"],
    "iwae_standard": ["objective=iwae", "objective.gradient=standard"],
    "mixture": ["prior=mixture", "prior.components=100"],
    "flow_prior": ["prior=flow"],
    "full_gaussian": ["posterior=full_gaussian"],
    "flow_posterior": ["posterior=flow"],
    "mlp_64": ["model.latent_dim=64"],
    "ladder": ["model=ladder", "model.below=[40]", "model.hidden=[300,300]", "model.latent_dim=24"],
}
PYTHAE = {"pythae_vae": ("vae", "standard"), "pythae_vamp": ("vamp", "vamp"), "pythae_iwae": ("iwae", "standard")}
ORDER = [*OURS, *PYTHAE]


def train_ours(name: str, folder: Path, epochs: int) -> None:
    """Train by vae-train, in a process of its own."""
    command = [sys.executable, "-m", "vae_cli.train", *NETWORK, *TRAINING, *OURS[name]]
    if name == "ladder":
        command = [c for c in command if not c.startswith(("model.hidden=[300,300]", "model.latent_dim=40"))]
        command += ["model.hidden=[300,300]"]
    subprocess.run([*command, f"trainer.epochs={epochs}", f"hydra.run.dir={folder}"], check=True)


def train_pythae(name: str, folder: Path, epochs: int) -> None:
    """Train by pythae, starting from our weights, and leave a run folder like ours."""
    from benchmarks import rivals

    kind, prior = PYTHAE[name]
    config = run.compose([*NETWORK, *TRAINING, f"prior={prior}", f"trainer.epochs={epochs}"])
