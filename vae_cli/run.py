"""From a configuration to parts to a finished run folder."""

from __future__ import annotations

import inspect
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object

from vae_cli import checkpoint, metrics
from vae_cli.config import Config, Part
from vae_cli.data import Dataset, Resident, Spec, load
from vae_cli.errors import UserError
from vae_cli.report import Reporter
from vae_cli.trainer import Trainer, build_optimizer, choose_device
from vae_cli.vae import VAE

EVALUATED = 10_000  # training examples at most that the final numbers are computed on


def find(group: str, part: Part) -> Callable[..., Any]:
    """Return the class or function that a part names.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return get_object(part.target)
    except Exception as error:
        raise UserError(f"{group}._target_={part.target}: cannot be imported ({str(error).splitlines()[0]})") from None


def assemble(group: str, part: Part, **offered: Any) -> Any:
    """Build a part from its settings and from those of the offered facts that its constructor names.

    Raises:
        UserError: the part cannot be imported, or does not know one of its settings.
    """
    kind = find(group, part)
    named = inspect.signature(kind).parameters
    given = {key: value for key, value in part.arguments.items() if key not in offered or key in named}
    if unknown := [key for key in given if key not in named]:
        allowed = ", ".join(f"{group}.{name}" for name in named if name not in offered)
        raise UserError(f"{group}.{unknown[0]}: no setting of {part.target} (allowed: {allowed or 'none'})")
    return kind(**{key: value for key, value in offered.items() if key in named} | given)


def load_dataset(config: Config) -> Dataset:
    """Load the data of a configuration, split and checked against its likelihood."""
    source = assemble("data", config.data)
    support = getattr(find("likelihood", config.likelihood), "support", "real")
    return load(config.data, source, support=support, likelihood=_name(config.likelihood))


def build(config: Config, spec: Spec) -> VAE:
    """Build the model of a configuration for data of that kind, with fresh weights."""
    latent_dim = config.model.latent_dim
    likelihood = assemble("likelihood", config.likelihood, levels=spec.levels)
    conditioning = assemble("conditional", config.conditional, classes=spec.classes, attributes=spec.attributes)
    model = assemble(
        "model",
        config.model,
        shape=spec.shape,
        latent_dim=latent_dim,
        condition_dim=conditioning.dim,
        outputs=likelihood.outputs,
    )
    posterior = assemble("posterior", config.posterior, features=model.features, latent_dim=latent_dim)
    prior = assemble("prior", config.prior, latent_dim=latent_dim, condition_dim=conditioning.dim)
    return VAE(
        model=model,
        posterior=posterior,
        prior=prior,
        likelihood=likelihood,
        conditioning=conditioning,
        shape=spec.shape,
    )


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def train(config: Config, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Train the model of a configuration into a run folder and return its summary.

    Raises:
        UserError: something the person can mend.
    """
    last = folder / "checkpoints" / "last.pt"
    if not resume and last.exists():
        raise UserError(f"{folder} holds a run already: go on with resume={folder}, or choose another hydra.run.dir")
    folder.mkdir(parents=True, exist_ok=True)
    device = choose_device(config.trainer.device)
    _set_determinism(config.trainer.deterministic)
    dataset = load_dataset(config)
    seed_everything(config.seed)
    vae = build(config, dataset.spec).to(device)
    vae.products = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    state = checkpoint.load(last, device) if resume else None
    conditional = getattr(vae.conditioning, "dim", 0) > 0
    reporter = Reporter(folder, dataset.spec, conditional=conditional, resumed_at=state["step"] if state else None)
    try:
        trainer = _trainer(config, vae, dataset, reporter, folder)
        if state is not None:
            best = folder / "checkpoints" / "best.pt"
            trainer.load_state_dict(state, checkpoint.load(best, device) if best.is_file() else None)
        _introduce(config, dataset, vae, trainer, reporter, folder)
        trainer.fit()
        return _finish(config, dataset, trainer, reporter)
    finally:
        reporter.close()


def _trainer(config: Config, vae: VAE, dataset: Dataset, reporter: Reporter, folder: Path) -> Trainer:
    kind = find("optimizer", config.optimizer)
    about = {"config": config.model_dump(by_alias=True), "spec": dataset.spec.to_dict()}

    def save(best: dict[str, Any] | None, last: dict[str, Any]) -> None:
        if best is not None:
            checkpoint.save(best | about, folder / "checkpoints" / "best.pt")
        checkpoint.save(last | about, folder / "checkpoints" / "last.pt")

    return Trainer(
        vae=vae,
        objective=assemble("objective", config.objective),
        kl=assemble("kl", config.kl),
        optimizer=build_optimizer(kind, vae.parameters(), config.optimizer.arguments),
        lr_schedule=assemble("lr_schedule", config.lr_schedule, epochs=_epochs(config, len(dataset.train))),
        dataset=dataset,
        settings=config.trainer,
        seed=config.seed,
        reporter=reporter,
        save=save,
    )


def _epochs(config: Config, n: int) -> float:
    """Return the length of the run in epochs."""
    if config.trainer.steps is None:
        return float(config.trainer.epochs)
    return config.trainer.steps / (n // min(config.trainer.batch_size, n))


def _set_determinism(wanted: bool) -> None:
    """Set for each job anew: the setting of one job of a sweep must not leak into the next."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)


def _name(part: Part) -> str:
    return part.target.rsplit(".", 1)[-1]


def _introduce(config: Config, dataset: Dataset, vae: VAE, trainer: Trainer, reporter: Reporter, folder: Path) -> None:
    """Say in one line what was built, and warn of what makes its numbers mean something else."""
    spec = dataset.spec
    count = sum(p.numel() for p in vae.parameters())
    sizes = ", ".join(
        f"{len(part):,} {split}"
        for split in ("train", "valid", "test")
        if (part := getattr(dataset, split)) is not None
    )
    kind = {"scale": "", "bernoulli": ", binarised dynamically", "dequantize": ", dequantised"}[dataset.kind]
    start = f", going on at step {trainer.step}" if trainer.step else ""
    reporter.line(
        f"{_name(config.data)} {list(spec.shape)} ({sizes}{kind}) | {_name(config.model)}, "
        f"{config.model.latent_dim} latent dimensions, {count:,} parameters | {_name(config.likelihood)} | "
        f"{trainer.device.type} {config.trainer.precision} | {trainer.total:,} steps of {trainer.batch_size}{start} "
        f"| {folder}"
    )
    if vae.likelihood.support == "binary" and not spec.binary:
        reporter.warn(
            "bernoulli on grey values: its number is a cross-entropy, not a log-likelihood; "
            "data.binarize=dynamic or likelihood=continuous_bernoulli gives one"
        )
    if spec.levels is not None and not vae.likelihood.discrete and not spec.binary:
        reporter.warn(
            "a density on grey levels can grow without bound: compare it only with runs of the same likelihood "
            "settings, or set data.dequantize=true"
        )
    epochs = trainer.total / trainer.steps_per_epoch
    if trainer.kl.settled > epochs:
        reporter.warn(
            f"the KL schedule takes {trainer.kl.settled:g} epochs to settle but the run has {epochs:g}: "
            "shorten it (kl.warmup, or kl.period and kl.cycles) or train longer"
        )


def _finish(config: Config, dataset: Dataset, trainer: Trainer, reporter: Reporter) -> dict[str, Any]:
    """Evaluate the chosen weights on every split, draw the figures, write the summary."""
    vae, device, spec = trainer.evaluated, trainer.device, dataset.spec
    note, epoch = f"last weights (epoch {trainer.epoch:g})", trainer.epoch
    if config.trainer.final == "best" and trainer.best is not None:
        vae.load_state_dict(trainer.best["model"])
        epoch = trainer.best["epoch"]
        note = f"best weights by valid/elbo (epoch {epoch:g})"
    sets: dict[str, Resident | None] = {
        "train": dataset.fixed_train(device, EVALUATED, config.data.seed + 3),
        "valid": trainer.valid,
        "test": dataset.resident("test", device),
    }
    summary: dict[str, Any] = {}
    for split, data in sets.items():
        if data is not None:
            result = metrics.evaluate(vae, data, samples=config.trainer.final_samples)
            shown, shown_result = data, result
            summary |= result.scalars(split)
            bits = metrics.bits_per_dim(result.elbo, spec, discrete=bool(vae.likelihood.discrete))
            summary |= {} if bits is None else {f"{split}/bits_per_dim": bits}
    summary |= {
        "parameters": sum(p.numel() for p in vae.parameters()),
        "train_seconds": round(trainer.seconds, 3),
        "examples_per_second": round(trainer.step * trainer.batch_size / max(trainer.seconds, 1e-9), 1),
        "epochs": round(trainer.epoch, 4),
        "steps": trainer.step,
        "evaluated_epoch": round(epoch, 4),
    }
    reporter.terminal.end()
    reporter.figures(vae, shown, shown_result)
    reporter.finish(summary, _flat(config.model_dump(by_alias=True)), trainer.step, note)
    return summary


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'kl': {'weight': 1.0}} → {'kl.weight': 1.0}."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
