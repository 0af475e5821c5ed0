"""What a run says before its first step: what was built, and what makes its numbers mean something else."""

from __future__ import annotations

import math
from pathlib import Path

from vae_cli import metrics
from vae_cli.config.run import Config
from vae_cli.data import Dataset
from vae_cli.kl import Constant
from vae_cli.parts import name_of
from vae_cli.report import Reporter, Silent
from vae_cli.system import parallel
from vae_cli.training.pace import Pace
from vae_cli.training.step import Step
from vae_cli.training.trainer import Trainer

FEW_STEPS, LARGE = 1000, 28 * 28  # steps that teach little of examples with so many elements
KINDS = {"bernoulli": ", binarised dynamically", "dequantize": ", dequantised"}


def introduce(config: Config, dataset: Dataset, trainer: Trainer, reporter: Reporter | Silent, folder: Path) -> None:
    """Say in one line what was built, and warn of what a person should know before the numbers come."""
    step, pace, vae = trainer.state.step, trainer.pace, trainer.stepper.vae
    start = f", going on at step {step}" if step else ""
    reporter.line(
        f"{_data(config, dataset)} | {name_of('model', config.model)}, {vae.latent.described}, "
        f"{sum(p.numel() for p in vae.parameters()):,} parameters | {name_of('likelihood', config.likelihood)} | "
        f"{_machine(trainer.stepper)} | {pace.total:,} steps of {pace.batch_size}{start} | {folder}"
    )
    for line in metrics.caveats(dataset, vae.likelihood):
        reporter.warn(line)
    _say_how_long(config, dataset, pace, step, reporter)
    _warn_of_schedule(trainer.kl, pace, reporter)


def _data(config: Config, dataset: Dataset) -> str:
    """Return name, shape, sizes and treatment of the data."""
    sizes = ", ".join(f"{n:,} {split}" for split, n in dataset.sizes.items())
    taken = f", whole numbers taken for {dataset.taken}" if dataset.taken else ""
    standardized = ", standardised, numbers in the data's own units" if dataset.spec.mean else ""
    kind = standardized if dataset.kind == "scale" else KINDS[dataset.kind]
    return f"{name_of('data', config.data)} {list(dataset.spec.shape)} ({sizes}{taken}{kind})"


def _machine(stepper: Step) -> str:
    """Return what steps run on."""
    settings = stepper.settings
    ways = ["compiled"] * settings.compile + ["graph"] * stepper.graphs
    ways += [] if stepper.data.resident else ["data streamed"]
    ways += [f"{parallel.count()} ranks"] if parallel.count() > 1 else []
    return " ".join([stepper.device.type, settings.precision, *ways])


def _say_how_long(config: Config, dataset: Dataset, pace: Pace, step: int, reporter: Reporter | Silent) -> None:
    shape = list(dataset.spec.shape)
    if config.trainer.steps is None and pace.total < FEW_STEPS and math.prod(shape) >= LARGE:
        reporter.line(
            f"{pace.total} steps are few for examples of {shape}: trainer.steps=5000 (or more "
            "trainer.epochs, or a smaller trainer.batch_size) trains longer"
        )
    if step >= pace.total:
        reporter.line(f"nothing left to train: {step} steps done, {pace.total} asked for (trainer.epochs)")


def _warn_of_schedule(kl: Constant, pace: Pace, reporter: Reporter | Silent) -> None:
    """Warn where the run ends before the KL weight has settled."""
    if kl.settled > pace.epochs:
        names = [f"kl.{name}" for name in ("warmup", "period", "cycles") if hasattr(kl, name)]
        reporter.warn(
            f"the KL schedule takes {kl.settled:g} epochs to settle but the run has {pace.epochs:g}: "
            f"shorten it ({', '.join(names) or 'its duration'}) or train longer"
        )
