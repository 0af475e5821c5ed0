"""Fixtures: composed configurations, runs in this process, the command in another, and the real MNIST."""

import os
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import DEFAULT, patch

import pytest
import torch

from tests.ordeals import TINY
from tests.processes import ROOT, command
from vae_cli.config import compose
from vae_cli.report import Reporter
from vae_cli.training import run

__all__ = ["ROOT", "TINY", "command", "configure", "train"]

configure = compose  # composes and validates a configuration as vae-train would


def train(folder, *overrides, resume=False, drawn=False):
    """Train into a folder in this process and return the summary; `drawn` says whether figures and report are wanted.

    They are most of a short run's time.
    """
    with nullcontext() if drawn else patch.multiple(Reporter, figures=DEFAULT, page=DEFAULT):
        return run.train(configure(*overrides), Path(folder), resume=resume)


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
