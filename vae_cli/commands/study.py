"""An Optuna study that lives in the folder of its sweep: trial k trains in folder k. No torch.

A study whose storage is elsewhere may have other workers; it is left to Optuna.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from vae_cli.system.errors import UserError, first_line

DATABASE = "study.db"  # in the folder of the sweep
SETTINGS = "settings"  # the attribute of a study that says what it searches


def at_once(*, _root_: DictConfig) -> int:
    """Return how many jobs the chosen launcher runs at a time: the workers of joblib, else 1."""
    jobs = OmegaConf.select(_root_, "hydra.launcher.n_jobs")
    if jobs is None:
        return 1
    from joblib import effective_n_jobs

    return effective_n_jobs(jobs)


def trial(before: int, *, _root_: DictConfig) -> int:
    """Return the number of a job's trial, where so many trials were over before the sweep was started again."""
    return before + _root_.hydra.job.num


OmegaConf.register_new_resolver("at_once", at_once, replace=True)
OmegaConf.register_new_resolver("trial", trial, replace=True)


def go_on(config: DictConfig, folder: Path) -> None:
    """Begin the study of a sweep, or go on with it: finished trials count, interrupted ones run again.

    Raises:
        UserError: the folder holds a study of something else.
    """
    if not _own(config):
        return
    from optuna.trial import TrialState

    with _refused_if_damaged(folder / DATABASE):
        study = _study(config)
        _refuse_another(config, study, folder)
    for each in study.get_trials(deepcopy=False):
        if each.state == TrialState.RUNNING:  # no more: the sweep's lock is ours
            study._storage.set_trial_state(each._trial_id, TrialState.WAITING)
    over = sum(each.state.is_finished() for each in study.get_trials(deepcopy=False))
    with read_write(config), open_dict(config):
        sweeper = config.hydra.sweeper
        sweeper.n_trials = max(0, sweeper.n_trials - over)
        if sweeper.sampler.get("seed") is not None:
            sweeper.sampler.seed += over  # or it would draw what it drew already
        config.hydra.overrides.hydra.append(f"hydra.sweep.subdir=${{trial:{over}}}")  # each job is composed anew


def best(config: DictConfig, folder: Path) -> Iterator[str]:
    """Yield a line that says which trial of a sweep's own study was the best, if any."""
    if not _own(config):
        return
    study = _study(config)
    if done := [each for each in study.get_trials(deepcopy=False) if each.values]:
        found = study.best_trial
        settings = " ".join(f"{key}={value}" for key, value in found.params.items())
        where = os.path.relpath(folder / str(found.number))
        yield f"best of {len(done)} trials: {config.score}={found.value:.3f} with {settings} ({where})"


def direction(config: DictConfig) -> str | None:
    """Return whether a search goes up or down, as it was typed; None for a sweep that is no search."""
    found = config.hydra.sweeper.get("direction")
    return getattr(found, "name", found)


def searched(config: DictConfig) -> list[str]:
    """Return the settings that a sweep varies, as they would be typed."""
    return [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]


@contextmanager
def _refused_if_damaged(path: Path) -> Iterator[None]:
    """Within the block a study is read; say in one line that the file which was there holds none.

    Raises:
        UserError: it does not.
    """
    there = path.is_file()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged ones fail in as many ways as the database and Optuna have
        if not there:
            raise
        raise UserError(f"{path}: no study to go on with ({type(error).__name__}: {first_line(error)})") from error


def _own(config: DictConfig) -> bool:
    """Whether a sweep has a study in its folder."""
    sweeper = config.hydra.sweeper
    return "optuna" in sweeper._target_ and sweeper.get("storage") == f"sqlite:///{config.hydra.sweep.dir}/{DATABASE}"


def _study(config: DictConfig) -> Any:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.ERROR)  # failures are listed at the end
    sweeper = config.hydra.sweeper
    return optuna.create_study(
        storage=sweeper.storage, study_name=sweeper.study_name, direction=direction(config), load_if_exists=True
    )


def _refuse_another(config: DictConfig, study: Any, folder: Path) -> None:
    """Refuse to mix two searches: their values would not compare."""
    typed = [each for each in config.hydra.overrides.task if not each.startswith("resume=")]
    now = sorted([*searched(config), *typed])
    then = study.user_attrs.get(SETTINGS, now)
    if differing := sorted(set(then) ^ set(now)):
        raise UserError(
            f"hydra.sweep.dir={folder}: holds a study of other settings ({', '.join(differing)}); "
            "give another hydra.sweep.dir for another search"
        )
    study.set_user_attr(SETTINGS, now)
