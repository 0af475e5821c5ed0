"""Which of several processes this one is, as torchrun (or a job of several tasks) says in the environment. No torch."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from vae_cli.system.errors import UserError


def rank() -> int:
    """Return this process's number among all; 0 where it is alone."""
    return int(os.environ.get("RANK", 0)) if count() > 1 else 0


def count() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Return this process's number on its machine: that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if count() > 1 else 0


def adopt_tasks() -> None:
    """Where submitit runs a job in several tasks, on Slurm or here, make these the ranks."""
    tasks = max(int(os.environ.get(name) or 1) for name in ("SLURM_NTASKS", "SUBMITIT_LOCAL_NTASKS"))
    if tasks > 1 and "SUBMITIT_EXECUTOR" in os.environ and "WORLD_SIZE" not in os.environ:
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)


class Said(UserError):
    """An error that this rank has already printed."""


def say(reason: str) -> None:
    """Print an error as a rank above the first."""
    print(f"vae-train: rank {rank()}: error: {reason}", file=sys.stderr, flush=True)


def code() -> str:
    """Return a digest of this package's source: ranks must run the same."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()[:12]
