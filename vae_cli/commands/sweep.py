"""What is done once for a whole sweep, in the process that launches its jobs: before them and after them. No torch."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vae_cli.commands import study
from vae_cli.commands.shared import told
from vae_cli.config.words import one_line
from vae_cli.system.disk import SETTINGS, Unwritable, refuse_links, write
from vae_cli.system.errors import UserError
from vae_cli.system.interruption import begin
from vae_cli.system.lock import Busy, locked, wait
from vae_cli.system.output import assignment, say

REASON = "error.txt"  # in the folder of a job that failed: the line, and for our own mistakes the traceback
LAUNCHER = "VAE_CLI_LAUNCHER"  # in the environment of joblib's workers: the process that launched the sweep
PATIENCE = 30.0  # seconds that a job waits for the worker of a killed sweep to save and to leave its folder
_BEGUN: list[Path] = []  # the folders of this process's sweeps
_UNWRITTEN: dict[Path, str] = {}  # the lines of failed jobs in whose folders there was no room for them
_WATCHING = threading.Event()  # whether this process watches its launcher
_BORN_OF = os.getppid()
_HELD = ExitStack()  # their locks, until the process ends


class Sweep(Callback):
    """Hydra calls it before the first job of a sweep and after the last."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Take the folder of the sweep, once and for all of its jobs."""
        begin()
        folder = Path(config.hydra.sweep.dir)
        with told("vae-train"):
            _refuse(config, folder)
            refuse_links(folder, deep=False)
            _refuse_settings(config)
            _HELD.enter_context(locked(folder))
            study.go_on(config, folder)
        _BEGUN.append(folder)
        _let_workers_know(config)
        _share_threads(config)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Say what came out of it."""
        folder = Path(config.hydra.sweep.dir)
        for line in study.best(config, folder):
            say(line)
        say(f"vae-compare {shlex.quote(os.path.relpath(folder))}")

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        """Let go of a finished job's settings: Hydra would hold those of thousands of jobs in memory to the end."""
        job_return.cfg = job_return.hydra_cfg = None


def _refuse(config: DictConfig, folder: Path) -> None:
    """Refuse to begin a sweep where one is, and to go on with one that nobody could find again."""
    stays = "${now:" not in str(OmegaConf.to_container(config.hydra.sweep, resolve=False))
    if config.get("resume") == "auto" and not stays:
        raise UserError(
            "resume=auto: needs a folder that stays the same from start to start; give hydra.sweep.dir=FOLDER"
        )
    if config.get("resume") != "auto" and any(folder.glob(f"*/{SETTINGS}")):
        raise UserError(
            f"hydra.sweep.dir={folder}: holds a sweep already; go on with it by resume=auto, or choose another folder"
        )


def _refuse_settings(config: DictConfig) -> None:
    """Refuse settings of sweeper and launcher that these would answer with a traceback, or with jobs that collide."""
    with_interpolations: Any = OmegaConf.to_container(config.hydra.sweep, resolve=False)
    _refuse_shared_folder(str(with_interpolations["subdir"]))
    for key in (
        "hydra.launcher.n_jobs",
        "hydra.sweeper.n_trials",
        "hydra.sweeper.n_jobs",
        "hydra.sweeper.max_batch_size",
    ):
        number = OmegaConf.select(config, key)
        if number == 0 or (number is not None and number < 0 and "sweeper" in key):
            raise UserError(f"{key}={number}: at least 1 is allowed")
    if (direction := study.direction(config)) not in (None, "maximize", "minimize"):
        raise UserError(f"hydra.sweeper.direction={direction}: maximize or minimize is allowed")
    if config.hydra.sweeper._target_.endswith("BasicSweeper"):
        _refuse_intervals([*config.hydra.overrides.task, *study.searched(config)])


def _refuse_shared_folder(subdir: str) -> None:
    """Refuse a folder that would be that of several jobs, or that of no job of the sweep."""
    if "${" not in subdir or Path(subdir).is_absolute() or ".." in Path(subdir).parts:
        raise UserError(
            f"hydra.sweep.subdir={subdir}: each job needs a folder of its own within hydra.sweep.dir; "
            "such as ${hydra.job.num} is allowed"
        )


def _refuse_intervals(overrides: Sequence[str]) -> None:
    """Refuse to list the values of an interval."""
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if isinstance(override.value(), IntervalSweep):
            raise UserError(f"{override.input_line}: only a search draws from an interval; sweep=optuna is one")


def _share_threads(config: DictConfig) -> None:
    """Let the jobs of submitit_local, which all run at once, have the CPUs that they were promised and no more."""
    launcher = config.hydra.launcher
    if launcher._target_.endswith("submitit_launcher.LocalLauncher"):
        os.environ.setdefault("OMP_NUM_THREADS", str(launcher.cpus_per_task or 1))


def _let_workers_know(config: DictConfig) -> None:
    """Tell the workers of joblib, which have no other work, whose they are; jobs of submitit outlive their launcher."""
    if config.hydra.launcher._target_.endswith("JoblibLauncher"):
        os.environ[LAUNCHER] = str(os.getpid())


def orphaned() -> bool:
    """Whether this process is a worker whose sweep was killed."""
    launcher = int(os.environ.get(LAUNCHER, os.getpid()))
    if launcher == os.getpid():
        return False
    try:
        os.kill(launcher, 0)
    except OSError:
        return True
    return os.getppid() != _BORN_OF  # killed, but not yet gone


def end_with_launcher() -> None:
    """In a worker, be interrupted as by SIGTERM once the sweep's own process has died."""
    if os.environ.get(LAUNCHER, str(os.getpid())) != str(os.getpid()) and not _WATCHING.is_set():
        _WATCHING.set()
        threading.Thread(target=_watch_launcher, daemon=True).start()


def _watch_launcher() -> None:
    while not orphaned():
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)


def failed(folder: Path, error: Exception) -> str:
    """Keep why a job failed in its folder, and return the one line of it."""
    line = one_line(error)
    details = "" if isinstance(error, UserError) else "\n" + "".join(traceback.format_exception(error))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / REASON, f"{line}\n{details}")
    except (OSError, Unwritable):  # a full disk, as like as not the reason itself
        _UNWRITTEN[folder] = line
    return line


def failures() -> list[str]:
    """Return a line for each failed job of this process's sweeps."""
    paths = [path for folder in _BEGUN for path in folder.rglob(REASON)]
    found = {path.parent: _first_line(path) for path in paths} | _UNWRITTEN
    return [f"{folder}: {found[folder]}" for folder in sorted(found, key=lambda each: (len(each.name), each.name))]


def _first_line(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]


def unfinished() -> list[str]:
    """Return a line for each job of this process's sweeps that a process of an earlier start still trains."""
    found = []
    for lock in sorted(path for folder in _BEGUN for path in folder.glob("*/.lock")):
        try:
            wait(lock.parent, 0.0)
        except Busy as error:
            found.append(f"{error}; start the sweep again when it has ended")
    return found


def begun() -> bool:
    """Whether this process has begun a sweep."""
    return bool(_BEGUN)


def how_to_go_on(arguments: Sequence[str]) -> str | None:
    """Return how to go on with the sweep that this process has begun with such arguments, None where it has not."""
    if not begun():
        return None
    others = [each for each in arguments if not each.startswith(("resume=", "hydra.sweep.dir="))]
    again = [*others, "resume=auto", assignment("hydra.sweep.dir", os.path.relpath(_BEGUN[-1]))]
    return f"; go on with: vae-train {shlex.join(again)}"
