"""Which device a run uses."""

from __future__ import annotations

import torch

from vae_cli.system.errors import UserError
from vae_cli.system.ranks import local_rank


def choose_device(name: str, key: str = "trainer.device") -> torch.device:
    """Return the device of that name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        UserError: there is no such device here.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, present in here.items() if present)
    if not here[name]:
        allowed = ", ".join(["auto", *(device for device, present in here.items() if present)])
        raise UserError(f"{key}={name}: there is none on this machine ({allowed} are allowed)")
    return torch.device(name, local_rank()) if name == "cuda" else torch.device(name)
