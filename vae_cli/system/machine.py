"""The part of the machine that this process may use: memory, threads, kernels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from vae_cli.system.errors import UserError, first_line

TRAINING = (
    "lower trainer.batch_size, the width of the model or objective.samples, "
    "or set trainer.precision=bf16 or trainer.resident=false"
)
OUT = ("out of memory", "can't allocate memory", "not enough memory")
AT_START = torch.get_num_threads()  # before any run of this process has set its own
MEMORY = Path("/proc/meminfo")
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU time in a period, or max


@contextmanager
def explain_out_of_memory(given: str = "", remedy: str = TRAINING) -> Iterator[None]:
    """Within the block, say in one line what to lower where memory runs out; `given` is the setting to blame."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{given and f'{given}: '}out of memory ({first_line(error)}); {remedy}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Say whether an error, of Python's or torch's, means that memory ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT)


def free_memory() -> int:
    """Return the bytes of memory that this process could still take, as far as the system tells."""
    if not MEMORY.is_file():
        return 2**62
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines() if ":" in line)
    return int(lines["MemAvailable"].split()[0]) * 1024


def set_up(*, tf32: bool = False, threads: int | str = "auto") -> None:
    """Set the number of CPU threads, and whether CUDA may compute fp32 products in TensorFloat-32.

    torch's default allows it for convolutions.
    """
    torch.set_num_threads(usable_threads() if isinstance(threads, str) else threads)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def prepare_compiler() -> None:
    """Make torch.compile draw the same random numbers as eager code, and forget what earlier jobs compiled."""
    import torch._inductor.config as inductor

    torch.compiler.reset()
    inductor.fallback_random = True


@contextmanager
def flushing() -> Iterator[None]:
    """Within the block a number below float32's normal ones, 1e-38, counts as 0: here and in threads that begin here.

    Adam's averages of gradients that have become 0, as of pixels that are hardly ever lit, fall that low and, rounded,
    stay there for good; a CPU takes a hundred times as long over each.
    """
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # which numpy would warn of where it first looks within the block
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def usable_threads() -> int:
    """Return how many CPU threads to compute with: OMP_NUM_THREADS, else one a core that this process may use.

    torch counts the machine's cores; a container or a scheduler may have granted fewer, and threads beyond them wait
    for one another. The workers of joblib and Ray are started with their share of the cores as OMP_NUM_THREADS.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return AT_START
    granted = [AT_START, int(os.environ.get("SLURM_CPUS_PER_TASK", AT_START))]
    if hasattr(os, "sched_getaffinity"):
        granted.append(len(os.sched_getaffinity(0)))
    if QUOTA.is_file():
        quota, _, period = QUOTA.read_text().partition(" ")
        granted += [] if quota == "max" else [round(int(quota) / int(period))]
    return max(1, min(granted))
