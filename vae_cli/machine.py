"""What of the machine this process may use."""

from __future__ import annotations

import os
from pathlib import Path

import torch

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time in a period, or max


def usable_threads() -> int:
    """Return how many CPU threads to compute with: OMP_NUM_THREADS, else one a core that this process may use.

    torch counts the machine's cores; a container or a scheduler may have granted fewer, and threads beyond them wait
    for one another.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    granted = [torch.get_num_threads()]
    if hasattr(os, "sched_getaffinity"):
        granted.append(len(os.sched_getaffinity(0)))
    if QUOTA.is_file():
        quota, _, period = QUOTA.read_text().partition(" ")
        granted += [] if quota == "max" else [round(int(quota) / int(period))]
    return max(1, min(granted))
