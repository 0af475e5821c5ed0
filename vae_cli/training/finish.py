"""The end of a run: the numbers of the chosen weights on every split, the figures, the report, the summary."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from vae_cli import metrics
from vae_cli.config import flat
from vae_cli.config.run import Config
from vae_cli.data import Dataset
from vae_cli.metrics import SplitMetrics
from vae_cli.parts import name_of
from vae_cli.report import Reporter, page
from vae_cli.system.machine import set_up
from vae_cli.system.output import shell_assignment
from vae_cli.training import diagnosis
from vae_cli.training.effort import Effort, affordable
from vae_cli.training.trainer import Trainer
from vae_cli.vae import VAE

FEW = 20  # effective samples below which log p(x) is called a bound


@dataclass(frozen=True)
class Chosen:
    """The weights that the numbers of a run come from.

    Attributes:
        vae: holds them, in fp32.
        epoch: that they are of.
        note: says which they are.
    """

    vae: VAE
    epoch: float
    note: str


def finish(config: Config, dataset: Dataset, trainer: Trainer, reporter: Reporter) -> dict[str, Any]:
    """Evaluate the chosen weights on every split, in fp32 as vae-eval does; draw the figures, write the summary."""
    set_up(threads=config.trainer.threads)
    chosen = _choose_weights(config, trainer)
    effort = affordable(config.trainer, dataset, trainer.pace.total * trainer.pace.batch_size)
    splits = _splits(config, dataset, trainer, chosen.vae, effort)
    summary = _numbers(config, splits, effort, reporter) | _facts(config, dataset, trainer, chosen, effort)
    _warn(config, dataset, trainer, effort, splits[-1], reporter)
    _report(config, trainer, chosen, splits, summary, reporter)
    reporter.conclude(summary)
    return summary


def _choose_weights(config: Config, trainer: Trainer) -> Chosen:
    """Put the best weights in place where they are wanted and there are any; else the last ones stay."""
    vae, best = trainer.stepper.evaluated, trainer.state.best
    vae.products = torch.float32
    if config.trainer.final == "last" or best is None:
        return Chosen(vae, trainer.epoch, f"last weights (epoch {trainer.epoch:g})")
    vae.load_state_dict(best["model"])
    selection = trainer.stepper.objective.selection
    return Chosen(vae, best["epoch"], f"best weights by valid/{selection} (epoch {best['epoch']:g})")


def _splits(config: Config, dataset: Dataset, trainer: Trainer, vae: VAE, effort: Effort) -> list[SplitMetrics]:
    """Return train, valid and test as far as there are any; the last is the one that pictures are of."""
    device = trainer.stepper.device
    sets = {
        "train": dataset.fixed_train(device, effort.train, config.data.seed),
        "valid": trainer.valid,
        "test": dataset.resident("test", device),
    }
    return [
        SplitMetrics(vae, dataset.spec, split, data, draws=effort.draws)
        for split, data in sets.items()
        if data is not None
    ]


def _numbers(config: Config, splits: list[SplitMetrics], effort: Effort, reporter: Reporter) -> dict[str, Any]:
    """Return the ELBO of each split; of the last also q(z) and log p(x); whatever the run's score is of."""
    summary: dict[str, Any] = {}
    for each in splits:
        summary |= each.named(each.elbo())
    last = splits[-1]
    summary |= last.named(last.aggregate())
    if config.trainer.log_likelihood_samples:
        summary |= last.named(_log_likelihood(config, last, effort, reporter))
    valid = next((each for each in splits if each.split == "valid"), None)
    if config.score not in summary and valid is not None:
        summary |= valid.named(_log_likelihood(config, valid, effort, reporter))
    return summary


def _log_likelihood(config: Config, split: SplitMetrics, effort: Effort, reporter: Reporter) -> dict[str, float]:
    """Return log p(x) from a modest number of draws, and say where that makes it a lower bound."""
    samples = config.trainer.log_likelihood_samples
    _, found = split.log_likelihood(samples, effort.weighed, compiled=config.trainer.compile)
    if found["effective_samples"] < FEW:
        reporter.line(
            f"log_likelihood rests on {found['effective_samples']:.1f} of {samples} draws an example: a lower "
            f"bound, tighter by vae-eval {shell_assignment('run', os.path.relpath(reporter.folder))}"
        )
    return found


def _facts(config: Config, dataset: Dataset, trainer: Trainer, chosen: Chosen, effort: Effort) -> dict[str, Any]:
    """Return what the numbers are of, and how long training took."""
    state, vae = trainer.state, chosen.vae
    return {
        "measure": metrics.measure(dataset, vae.likelihood, conditional=vae.conditional),
        "train/examples": effort.train,
        "final_samples": effort.draws,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "train_seconds": round(state.seconds, 3),
        "examples_per_second": round(state.step * trainer.pace.batch_size / max(state.seconds, 1e-9), 1),
        "epochs": round(trainer.epoch, 4),
        "steps": state.step,
        "evaluated_epoch": round(chosen.epoch, 4),
        "stopped_by": trainer.watch.stopped_by,
    }


def _warn(
    config: Config, dataset: Dataset, trainer: Trainer, effort: Effort, shown: SplitMetrics, reporter: Reporter
) -> None:
    """Say what the numbers rest on, and what is wrong with the run."""
    if spared := effort.spared(config.trainer, dataset):
        reporter.line(f"{spared}; vae-eval run={os.path.relpath(reporter.folder)} spares nothing")
    for line in diagnosis.warnings(reporter.history(), trainer.kl.settled):
        reporter.warn(line)
    if worse := shown.worse_than_no_model():
        reporter.warn(worse)


def _report(
    config: Config,
    trainer: Trainer,
    chosen: Chosen,
    splits: list[SplitMetrics],
    summary: dict[str, Any],
    reporter: Reporter,
) -> None:
    """Draw the finished run: TensorBoard, table, figures, report.html."""
    vae, step, settings, shown = chosen.vae, trainer.state.step, flat(config.plain), splits[-1]
    data, result = shown.data, shown.evaluation
    watched = next(each for each in splits if each.split == ("train" if trainer.valid is None else "valid"))
    reporter.pictures(step + 1, vae, trainer.watched, watched.evaluation.kl_by_dimension)  # void if the run goes on
    reporter.finish(summary, settings, step, chosen.note)
    reporter.attempt("figures", lambda: reporter.figures(vae, data, result))
    reporter.attempt("the Projector's codes", lambda: reporter.codes(step, vae, data))
    heading = page.Heading(*_title(config, vae, shown.split, chosen.note), shown.split, summary, settings)
    reporter.attempt("report.html", lambda: reporter.page(vae, data, result, heading))


def _title(config: Config, vae: VAE, split: str, note: str) -> tuple[str, str]:
    """Return title and subtitle of the report."""
    title = f"{name_of('model', config.model)} on {name_of('data', config.data)}"
    return title, f"{name_of('likelihood', config.likelihood)}, {vae.latent.described}; {split} examples, {note}"
