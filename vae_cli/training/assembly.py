"""The loop and its collaborators, put together from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vae_cli import metrics
from vae_cli.config.run import Config
from vae_cli.data import Dataset
from vae_cli.finished import describe
from vae_cli.kl import Constant
from vae_cli.objective import Objective
from vae_cli.parts import assemble
from vae_cli.report import Reporter, Silent
from vae_cli.system import checkpoint, parallel
from vae_cli.system.errors import UserError
from vae_cli.training.pace import Clock, Pace, checkpoint_interval
from vae_cli.training.pruning import MedianRule
from vae_cli.training.state import State
from vae_cli.training.step import Step
from vae_cli.training.trainer import Trainer
from vae_cli.training.watch import Watch
from vae_cli.vae import VAE

EARLY = 0.1  # the share of a run before which trainer.prune gives nothing up
WATCHED = 1000  # training examples that stand in for validation where there is none


def build_objective(config: Config, vae: VAE, dataset: Dataset, device: torch.device) -> Objective:
    """Build the objective of a configuration, on a device.

    Raises:
        UserError: it is something else than an objective.
    """
    objective = assemble("objective", config.objective, latent_dim=vae.latent_dim, examples=len(dataset.train))
    if not isinstance(objective, Objective):
        raise UserError(f"objective._target_={config.objective.target}: a vae_cli.objective.Objective is allowed")
    return objective.to(device)


def build_trainer(
    config: Config,
    vae: VAE,
    objective: Objective,
    dataset: Dataset,
    reporter: Reporter | Silent,
    folder: Path,
    *,
    pruned: bool = False,
) -> Trainer:
    """Put the loop together.

    Args:
        config: its settings.
        vae: on its device.
        objective: on the same device.
        dataset: examples.
        reporter: what writes for people.
        folder: of the run.
        pruned: whether finished siblings of the run in a sweep may end it.
    """
    settings, device = config.trainer, next(vae.parameters()).device
    kl = assemble("kl", config.kl)
    pace = Pace(settings, len(dataset.train))
    train, valid = dataset.resident("train", device, settings.resident), dataset.resident("valid", device)
    groups = [{"params": list(vae.parameters())}, *objective.groups()]
    optimizer = assemble("optimizer", config.optimizer, params=groups, fused=True)
    assert train is not None
    stepper = Step(vae=vae, objective=objective, optimizer=optimizer, kl=kl, data=train, settings=settings)
    state = State(stepper, assemble("lr_schedule", config.lr_schedule, epochs=pace.epochs), reporter)
    rule = _median_rule(config, folder, dataset, vae, kl, pace) if pruned else None
    return Trainer(
        state=state,
        train=train,
        valid=valid,
        watched=valid or dataset.fixed_train(device, WATCHED, seed=0),
        kl=kl,
        seed=config.seed,
        pace=pace,
        clock=Clock(checkpoint_interval(settings), pace.steps_per_epoch),
        watch=Watch(state, pace, settings, settled=kl.settled, reporter=reporter, hopeless=rule),
        reporter=reporter,
        save=_saver(config, dataset, folder / "checkpoints"),
    )


def _median_rule(config: Config, folder: Path, dataset: Dataset, vae: VAE, kl: Constant, pace: Pace) -> MedianRule:
    assert config.trainer.prune is not None
    return MedianRule(
        folder,
        measure=metrics.measure(dataset, vae.likelihood, conditional=vae.conditional),
        jobs=config.trainer.prune,
        earliest=max(kl.settled, EARLY * pace.epochs),
    )


def _saver(
    config: Config, dataset: Dataset, checkpoints: Path
) -> Callable[[dict[str, Any] | None, dict[str, Any]], None]:
    """Return what writes a run's states, with its settings and what its data are; only the first rank writes."""
    about = {"config": config.plain, **describe(dataset)}

    def save(best: dict[str, Any] | None, last: dict[str, Any]) -> None:
        if parallel.rank() > 0:
            return
        if best is not None:
            checkpoint.save(best | about, checkpoints / checkpoint.BEST)
        checkpoint.save(last | about, checkpoints / checkpoint.LAST, keep=checkpoints / checkpoint.PREVIOUS)

    return save
