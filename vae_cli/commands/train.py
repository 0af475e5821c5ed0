"""vae-train: the one way in to training. Configuration in, exit code out.

torch is imported only once the configuration has been accepted, so that help and errors come at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_cli.commands import follow, sweep
from vae_cli.commands.arguments import FORCED, prepare
from vae_cli.commands.folders import claim, is_saved, read_summary, record, withdraw
from vae_cli.commands.settings import accept, differ_from_run, plain_settings, resumed_settings
from vae_cli.commands.shared import ERRORS, expected, guarded, require_memory
from vae_cli.config.words import CONF
from vae_cli.system import ranks
from vae_cli.system.errors import DEBUGGING, UserError, first_line
from vae_cli.system.interruption import RESUMABLE, Interrupted, begin, deferred, heed
from vae_cli.system.lock import Busy, wait
from vae_cli.system.output import number, say, shell_assignment


def main() -> None:
    """Run vae-train; print errors as one line and exit with 1."""

    def body() -> None:
        heed()
        sys.argv[1:] = prepare(sys.argv[1:])
        _run()
        if lines := sweep.failures():
            raise UserError(f"{len(lines)} jobs of the sweep failed", *lines, *sweep.unfinished())
        if lines := sweep.unfinished():
            raise UserError(*lines)

    guarded("vae-train", body)


def _run() -> None:
    """Let Hydra run the application; what stops a whole sweep, a launcher's error or a signal, is one line as well."""
    try:
        application()
    except KeyboardInterrupt as interrupt:
        raise Interrupted(words) if (words := sweep.how_to_go_on(sys.argv[1:])) else interrupt from None
    except ERRORS:
        raise
    except Exception as error:
        if DEBUGGING or not sweep.begun():
            raise
        if "No trials are completed" not in str(error):  # Optuna's, where all have failed: each is told of
            raise UserError(first_line(error), *sweep.failures()) from error


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def application(composed: DictConfig) -> float | None:
    """Train what a composed configuration says; return its `score` to a sweeper, None where the job failed."""
    begin()
    ranks.adopt_tasks()
    if ranks.rank() > 0:
        return follow.follow(lambda: plain_settings(composed), accept)
    job = HydraConfig.get()
    start = Start(composed, Path(job.runtime.output_dir), sweeping=job.mode == RunMode.MULTIRUN)
    if start.sweeping:
        say(f"job {start.folder.name}: {job.job.override_dirname}")
    try:
        return start()
    except BrokenPipeError:  # what reads our output went; no error of the run
        raise
    except Exception as error:
        start.withdraw()
        _failed(error, start)
        return None
    except KeyboardInterrupt as interrupt:
        start.withdraw()
        if sweep.orphaned():
            os._exit(RESUMABLE)  # rather than wait for another job
        again = shell_assignment("resume", os.path.relpath(start.folder))
        raise type(interrupt)(f"; go on with: vae-train {again}" if is_saved(start.folder) else "") from None


class Start:
    """The start of a run: in a new folder, in one that stays the same from start to start, or from a checkpoint.

    Args:
        composed: the configuration.
        folder: that Hydra chose.
        sweeping: whether this is a job of a sweep.
    """

    def __init__(self, composed: DictConfig, folder: Path, *, sweeping: bool):
        self.composed, self.folder, self.sweeping = composed, folder, sweeping
        self.claimed = False

    def __call__(self) -> float:
        """Train, and return the score."""
        if not self.sweeping:
            _refuse_what_is_for_sweeps(self.composed)
        if earlier := follow.earlier():
            with contextlib.suppress(OSError):
                self.folder.rmdir()  # which Hydra has just made
            self.folder = earlier
            return self._begin_or_go_on()
        if self.sweeping:
            return self._begin_or_go_on()
        if (resume := self.composed.get("resume")) == "auto":
            _require_chosen_folder()
            return self._begin_or_go_on()
        if resume:
            return self._train(resumed_settings(self.folder, self.composed), resume=True)
        self.folder = claim(self.folder, chosen=_typed("hydra.run.dir"))
        self.claimed = True
        return self._train(plain_settings(self.composed), resume=False)

    def withdraw(self) -> None:
        """Leave no empty folder; another run's is not ours to remove."""
        if self.claimed:
            withdraw(self.folder)

    def _begin_or_go_on(self) -> float:
        """Train in a folder that stays: from the start, from its last checkpoint, or not at all where it is finished.

        So does every job of a sweep: its folder is the sweep's alone, and a launcher may start it again.
        """
        folder = self.folder
        if self.sweeping:
            sweep.end_with_launcher()
            wait(folder, sweep.PATIENCE)
            (folder / sweep.REASON).unlink(missing_ok=True)
        settings, resume = plain_settings(self.composed), is_saved(folder)
        if resume and not differ_from_run(settings, folder) and (summary := read_summary(folder)):
            say(f"finished already: {os.path.relpath(folder)}")
            follow.lead(settings, None)
            return _score(settings, summary)
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        return self._train(settings, resume=resume)

    def _train(self, settings: dict[str, Any], *, resume: bool) -> float:
        """Train with settings, in the folder; the other ranks follow."""
        config, folder, sweeping = accept(settings), self.folder, self.sweeping
        require_memory("vae_cli.training.run")
        with deferred():
            from vae_cli.training import run  # brings torch

        word = {"settings": settings, "folder": str(folder.absolute()), "resume": resume, "sweeping": sweeping}
        follow.lead(plain_settings(self.composed), word)
        overrides = [each.removeprefix(FORCED) for each in HydraConfig.get().overrides.task]
        summary = run.train(
            config, folder, resume=resume, sweeping=sweeping, accepted=lambda: record(folder, settings, overrides)
        )
        say(f"report: {os.path.relpath(folder / 'report.html')}")
        say(f"tensorboard --logdir {shlex.quote(os.path.relpath(folder))}")
        return _score(settings, summary)


def _failed(error: Exception, start: Start) -> None:
    """End a run with one line; a job of a sweep alone, since the others run on: the end of the sweep repeats it."""
    line = expected(error)
    if DEBUGGING or not (start.sweeping or line):
        raise error
    if not start.sweeping:
        sys.exit(f"vae-train: error: {line}")
    if isinstance(error, Busy):
        print(f"job {start.folder.name} left alone: {error}", file=sys.stderr)
    else:
        print(f"job {start.folder.name} failed: {sweep.failed(start.folder, error)}", file=sys.stderr)


def _refuse_what_is_for_sweeps(composed: DictConfig) -> None:
    """Refuse what a single run would pass over."""
    if option := HydraConfig.get().runtime.choices.get("sweep"):
        raise UserError(f"sweep={option}: has no effect on a single run; with -m it is a sweep")
    if OmegaConf.select(composed, "trainer.prune"):
        raise UserError("trainer.prune: has no effect on a single run, which has no siblings; -m makes a sweep")


def _require_chosen_folder() -> None:
    if not _typed("hydra.run.dir"):
        raise UserError(
            "resume=auto: needs a folder that stays the same from start to start; give hydra.run.dir=FOLDER"
        )


def _typed(key: str) -> bool:
    return any(override.startswith(f"{key}=") for override in HydraConfig.get().overrides.hydra)


def _score(settings: dict[str, Any], summary: dict[str, Any]) -> float:
    """Return what a sweeper is to maximise; train/elbo where there are no validation examples.

    Raises:
        UserError: a summary from elsewhere holds no number there.
    """
    key = settings["score"] if settings["score"] in summary else "train/elbo"
    if (found := number(summary[key])) is None:
        raise UserError(f"summary.json: {key}={summary[key]} is no number")
    return found


if __name__ == "__main__":
    main()
