"""Every random number generator in use: python, numpy, torch, and the device's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_own_rows = False
_rank, _ranks = 0, 1  # this process's place among those that share a batch


def share(rank: int, ranks: int) -> None:
    """Set which rows of a batch belong to this process."""
    global _rank, _ranks
    _rank, _ranks = rank, ranks


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def reseed(seed: int, device: torch.device) -> None:
    """Seed the generators that a run on `device` draws from; much cheaper than `torch.manual_seed`.

    That function asks every kind of device, and keeps a stack trace for each that is not in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def mixed(seed: int, k: int) -> int:
    """Return the seed of the k-th of several independent streams."""
    return (seed * 0x9E3779B97F4A7C15 + k * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63


def state_dict(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator that a run on `device` draws from, in plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "device": _device_state(device),
    }


def load_state_dict(state: dict[str, Any], device: torch.device) -> None:
    """Put every generator back to where `state_dict` found it; a device of another kind keeps its own state."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    _set_device_state(state["device"], device)


@contextmanager
def own_rows() -> Iterator[None]:
    """Within the block, tensors hold this rank's rows of a batch: `rows` draws for the whole of it.

    All ranks' generators then agree at every step, with one another and with those of a process that is alone: noise
    belongs to the example, not to the rank, and a checkpoint is the same file whatever the number of ranks.
    """
    global _own_rows
    before, _own_rows = _own_rows, _ranks > 1
    try:
        yield
    finally:
        _own_rows = before


def rows(draw: Callable[[Sequence[int]], Tensor], shape: Sequence[int], axis: int = 0) -> Tensor:
    """Return random numbers of a shape, whose batch axis may be this rank's part of a batch.

    Args:
        draw: draws a tensor of the shape it is given.
        shape: of the result.
        axis: of the examples.
    """
    if not _own_rows:
        return draw(shape)
    whole, own = list(shape), shape[axis]
    whole[axis] *= _ranks
    return draw(whole).narrow(axis, _rank * own, own)


def normal(shape: Sequence[int], like: Tensor) -> Tensor:
    """Draw from N(0, 1): [..., B, D], or [D] where there are no examples; of the type and on the device of `like`."""

    def draw(shape: Sequence[int]) -> Tensor:
        return torch.empty(shape, dtype=like.dtype, device=like.device).normal_()

    return rows(draw, shape, -2) if like.ndim > 1 else draw(shape)


@contextmanager
def fork(seed: int, device: torch.device) -> Iterator[None]:
    """Draw from the given seed within the block; torch's generators are restored after it."""
    host, on_device = torch.get_rng_state(), _device_state(device)
    reseed(seed, device)
    try:
        yield
    finally:
        torch.set_rng_state(host)
        _set_device_state(on_device, device)


def _device_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of a device's own generator under the device's kind; nothing for the CPU."""
    if device.type == "cuda":
        return {"cuda": torch.cuda.get_rng_state(device)}
    return {"mps": torch.mps.get_rng_state()} if device.type == "mps" else {}


def _set_device_state(states: dict[str, Tensor], device: torch.device) -> None:
    if device.type not in states:
        return
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states["mps"].cpu())
