"""What a sweep leaves to say when all its jobs are over: which of them failed, and why. No torch."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from vae_cli.errors import UserError, one_line

REASON = "error.txt"  # in the folder of a job that failed: the line, and for our own mistakes the traceback
_BEGUN: list[Path] = []  # the folders of this process's sweeps


class Sweep(Callback):
    """Remembers the folder of a sweep that begins; Hydra calls it in the process that launches the jobs."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the folder, and void the failures of an earlier attempt in it."""
        folder = Path(config.hydra.sweep.dir)
        for old in folder.glob(f"*/{REASON}"):
            old.unlink()
        _BEGUN.append(folder)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Let go of a finished job's settings: Hydra would hold those of thousands of jobs in memory to the end."""
        job_return.cfg = job_return.hydra_cfg = None


def failed(folder: Path, error: Exception) -> str:
    """Keep why a job failed in its folder, and return the one line of it."""
    line = one_line(error)
    details = "" if isinstance(error, UserError) else "\n" + "".join(traceback.format_exception(error))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REASON).write_text(f"{line}\n{details}")
    return line


def failures() -> list[str]:
    """Return a line for each failed job of this process's sweeps."""
    found = [path for folder in _BEGUN for path in folder.glob(f"*/{REASON}")]
    found.sort(key=lambda path: (len(path.parent.name), path.parent.name))
    return [f"{path.parent}: {path.read_text().splitlines()[0]}" for path in found]
