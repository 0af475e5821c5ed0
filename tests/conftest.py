"""Fixtures: composed configurations, runs in this process, the command in another, and the real MNIST."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vae_cli import run
from vae_cli.config import compose

ROOT = Path(__file__).parent.parent
TINY = ["data=synthetic", "data.n=200", "data.shape=[12,12]", "model.latent_dim=4", "trainer.steps=2"]


configure = compose  # composes and validates a configuration as vae-train would


def train(folder, *overrides, resume=False):
    """Train into a folder in this process and return the summary."""
    return run.train(configure(*overrides), Path(folder), resume=resume)


def command(*arguments, cwd=ROOT, timeout=300):
    """Run vae-train in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "vae_cli.train", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_root():
    """The folder that holds MNIST/raw, or a reason to skip."""
    for root in filter(None, (os.environ.get("VAE_DATA"), ROOT.parent / "shared" / "data")):
        if (Path(root) / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file():
            return str(Path(root).absolute())
    pytest.skip("no MNIST: set VAE_DATA to a folder that holds MNIST/raw")
