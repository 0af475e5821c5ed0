"""From a configuration to a finished run folder."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vae_cli import metrics
from vae_cli.config import flat, modernise_state, refuse_without_validation
from vae_cli.config.run import Config
from vae_cli.data import Dataset, Resident
from vae_cli.finished import about_data, changed, refuse_others, told_of
from vae_cli.objective import Objective, Penalty
from vae_cli.parts import assemble, build, load_dataset, name_of, own_parts
from vae_cli.report import Reporter, Silent, page
from vae_cli.system import checkpoint, parallel
from vae_cli.system.device import choose_device
from vae_cli.system.disk import refuse_links
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.lock import locked
from vae_cli.system.machine import flushing, memory_told, prepare_compiler, set_up
from vae_cli.system.output import shell_assignment
from vae_cli.system.randomness import seed_everything
from vae_cli.training import diagnosis
from vae_cli.training.pruning import MedianRule
from vae_cli.training.trainer import Trainer, epoch_length
from vae_cli.vae import VAE

FEW = 20  # effective samples below which log p(x) is called a bound
EARLY = 0.1  # the share of a run before which trainer.prune says nothing
FEW_STEPS, LARGE = 1000, 28 * 28  # steps that teach little of examples with so many elements
EVALUATED = 10_000  # training examples at most that the final numbers are computed on
FEW_EVALUATED = 1000  # of them, where more would take too long
FEW_WEIGHED = 10  # examples that log p(x) is computed of, where more would take too long
ALWAYS = 2**28  # elements of p(x|z) that the final ELBOs, and again log p(x), may decode however short training was


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    sweeping: bool = False,
    accepted: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train the model of a configuration into a run folder and return its summary.

    Args:
        config: what to train.
        folder: where what the run leaves is written.
        resume: go on from the folder's last checkpoint.
        sweeping: the folders beside it hold the other jobs of a sweep, which trainer.prune compares it with.
        accepted: called once everything has been built, just before training.

    Raises:
        UserError: something the person can mend.
    """
    device = choose_device(config.trainer.device)
    refuse_links(folder)
    parallel.start(device)
    alone = locked(folder) if parallel.rank() == 0 else nullcontext(lambda: None)
    with alone as present, memory_told(), parallel.losses_told(), flushing():
        if parallel.rank() == 0 and not resume and (folder / "checkpoints" / checkpoint.LAST).is_file():
            raise UserError(f"{folder}: another process has trained there just now; start again to go on from it")
        try:
            return _train(config, folder, device, resume, sweeping, accepted, present)
        finally:
            if device.type == "cuda":
                gc.collect()  # what a job of a sweep held of the device is the next one's


def _train(
    config: Config,
    folder: Path,
    device: torch.device,
    resume: bool,
    sweeping: bool,
    accepted: Callable[[], None] | None,
    present: Callable[[], None],
) -> dict[str, Any]:
    _set_up_process(config, device)
    with parallel.one_after_another():
        dataset = load_dataset(config)
    _refuse_ranks_of_other_data(dataset)
    if dataset.valid is None:
        refuse_without_validation(config, f"data={name_of('data', config.data)}, which has no validation split here")
    seed_everything(config.seed)
    vae = build(config, dataset.spec).to(device)
    vae.products = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    if vae.wants_examples and not resume:
        vae.initialize(dataset.fixed_train(device, EVALUATED, seed=0).batch(slice(0, EVALUATED)))
    objective = _objective(config, dataset, device)
    _probe(vae, objective, dataset, config, device)
    told: list[str] = []
    last, best = parallel.by_first(lambda: _states(folder, config, dataset, told.append)) if resume else (None, None)
    last, best = checkpoint.move((last, best), device)
    reporter = _reporter(folder, dataset, vae, last, present)
    try:
        trainer = _trainer(config, vae, objective, dataset, reporter, folder)
        if config.trainer.prune and sweeping:
            trainer.hopeless = _rule(config, folder, dataset, trainer)
        if last is not None:
            with checkpoint.fitting(folder / "checkpoints" / checkpoint.LAST):
                trainer.load_state_dict(last, best)
            trainer.kept = trainer.step
        if accepted is not None:
            accepted()
        _introduce(config, dataset, vae, trainer, reporter, folder)
        for line in told:
            reporter.warn(line)
        trainer.fit()
        parallel.part_ways()
        return _finish(config, dataset, trainer, reporter) if isinstance(reporter, Reporter) else {}
    finally:
        reporter.close()


def _refuse_ranks_of_other_data(dataset: Dataset) -> None:
    """Refuse to train where a rank has loaded other examples than the first, as from a stale copy.

    Raises:
        UserError: names the first such rank.
    """
    own = changed(parallel.shared(about_data(told_of(dataset))), dataset, "there")
    for rank, change in enumerate(parallel.everyones(own)):
        if change is not None:
            parallel.refuse(f"data: rank {rank} has other examples than rank 0 ({change}); ranks need the same data")


def _reporter(
    folder: Path, dataset: Dataset, vae: VAE, last: dict[str, Any] | None, present: Callable[[], None]
) -> Reporter | Silent:
    """Return who writes for people: the first rank alone."""
    if parallel.rank() > 0:
        return Silent()
    folder.mkdir(parents=True, exist_ok=True)
    return Reporter(
        folder,
        dataset.spec,
        conditional=vae.conditional,
        resumed_at=last["step"] if last else None,
        refuse_to_go_on_without=present,
    )


@torch.no_grad()
def _probe(vae: VAE, objective: Objective, dataset: Dataset, config: Config, device: torch.device) -> None:
    """Pass two examples through parts of a user's own, so that a mistake in them is told before training."""
    if not (own := ", ".join(own_parts(config))):
        return
    batch = dataset.fixed_train(device, most=2, seed=0).batch(slice(0, 2))
    try:
        with metrics.undisturbed(vae):
            found = list(vae(batch).log_likelihood.shape)
            mean = list(vae.sample(2, batch.y).shape)
            terms = objective(vae, batch, Penalty())
            if missing := set(objective.extra) - set(terms.extra):
                raise KeyError(f"its extra term {missing.pop()} is not returned by its loss")
    except Exception as error:
        raise UserError(f"{own}: fails on two examples ({type(error).__name__}: {first_line(error)})") from error
    for what, shape, wanted in (("log_prob(x)", found, [1, len(batch.x)]), ("mean", mean, [2, *dataset.spec.shape])):
        if shape != wanted:
            raise UserError(f"{own}: p(x|z).{what} has shape {shape} for two examples; {wanted} is allowed")


def _states(
    folder: Path, config: Config, dataset: Dataset, tell: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the last and the best state of a run, whose data must be those that were loaded now."""
    path = folder / "checkpoints" / checkpoint.LAST
    with checkpoint.fitting(path):
        last = checkpoint.load_last(path.parent, "cpu", tell)
        checkpoint.count_in(last, "step")
        if change := changed(about_data(last), dataset):
            raise UserError(f"resume={folder}: the data changed since the run began ({change})")
        refuse_others(path, last, config)
        last = modernise_state(last)
    return last, _best_state(path.with_name(checkpoint.BEST), config, tell)


def _best_state(path: Path, config: Config, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the best state of a run; None where there is none yet, or none that is whole."""
    try:
        best = checkpoint.load(path) if path.is_file() else None
    except UserError as error:
        tell(f"{error}; the best weights are sought anew from here on")
        return None
    if best is not None:
        with checkpoint.fitting(path):
            refuse_others(path, best, config)
            return modernise_state(best)
    return None


def _objective(config: Config, dataset: Dataset, device: torch.device) -> Objective:
    objective = assemble("objective", config.objective, latent_dim=config.model.latent_dim, examples=len(dataset.train))
    if not isinstance(objective, Objective):
        raise UserError(f"objective._target_={config.objective.target}: a vae_cli.objective.Objective is allowed")
    return objective.to(device)


def _trainer(
    config: Config, vae: VAE, objective: Objective, dataset: Dataset, reporter: Reporter | Silent, folder: Path
) -> Trainer:
    about, checkpoints = {"config": config.plain, **told_of(dataset)}, folder / "checkpoints"

    def save(best: dict[str, Any] | None, last: dict[str, Any]) -> None:
        if parallel.rank() > 0:
            return
        if best is not None:
            checkpoint.save(best | about, checkpoints / checkpoint.BEST)
        checkpoint.save(last | about, checkpoints / checkpoint.LAST, keep=checkpoints / checkpoint.PREVIOUS)

    groups = [{"params": list(vae.parameters())}, *objective.groups()]
    steps, a_pass = config.trainer.steps, epoch_length(config.trainer, len(dataset.train))
    return Trainer(
        vae=vae,
        objective=objective,
        kl=assemble("kl", config.kl),
        optimizer=assemble("optimizer", config.optimizer, params=groups, fused=True),
        lr_schedule=assemble(
            "lr_schedule", config.lr_schedule, epochs=float(steps / a_pass if steps else config.trainer.epochs)
        ),
        dataset=dataset,
        settings=config.trainer,
        seed=config.seed,
        reporter=reporter,
        save=save,
    )


def _rule(config: Config, folder: Path, dataset: Dataset, trainer: Trainer) -> MedianRule:
    assert config.trainer.prune is not None
    epochs = trainer.total / trainer.steps_per_epoch
    return MedianRule(
        folder,
        measure=metrics.measure(dataset, trainer.vae.likelihood, conditional=trainer.vae.conditional),
        jobs=config.trainer.prune,
        earliest=max(trainer.kl.settled, EARLY * epochs),
    )


def _set_up_process(config: Config, device: torch.device) -> None:
    """Set for each job anew what belongs to the process: nothing of one job of a sweep may leak into the next."""
    if config.trainer.precision == "tf32" and device.type != "cuda":
        raise UserError(f"trainer.precision=tf32: has no effect on {device.type}; fp32 or bf16 is allowed")
    if config.trainer.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != config.trainer.deterministic:  # the call imports the compiler
        torch.use_deterministic_algorithms(config.trainer.deterministic)
    set_up(tf32=config.trainer.precision == "tf32", threads=config.trainer.threads)
    if config.trainer.compile:
        prepare_compiler()


def _introduce(
    config: Config, dataset: Dataset, vae: VAE, trainer: Trainer, reporter: Reporter | Silent, folder: Path
) -> None:
    """Say in one line what was built, and warn of what makes its numbers mean something else."""
    spec = dataset.spec
    count = sum(p.numel() for p in vae.parameters())
    sizes = ", ".join(f"{n:,} {split}" for split, n in dataset.sizes.items())
    taken = f", whole numbers taken for {dataset.taken}" if dataset.taken else ""
    kind = (
        taken
        + {
            "scale": ", standardised, numbers in the data's own units" if spec.mean else "",
            "bernoulli": ", binarised dynamically",
            "dequantize": ", dequantised",
        }[dataset.kind]
    )
    start = f", going on at step {trainer.step}" if trainer.step else ""
    reporter.line(
        f"{name_of('data', config.data)} {list(spec.shape)} ({sizes}{kind}) | {name_of('model', config.model)}, "
        f"{vae.latent_dim} latent dimensions, {count:,} parameters | {name_of('likelihood', config.likelihood)} | "
        f"{trainer.how} | {trainer.total:,} steps of {trainer.batch_size}{start} "
        f"| {folder}"
    )
    for line in metrics.caveats(dataset, vae.likelihood):
        reporter.warn(line)
    if config.trainer.steps is None and trainer.total < FEW_STEPS and math.prod(spec.shape) >= LARGE:
        reporter.line(
            f"{trainer.total} steps are few for examples of {list(spec.shape)}: trainer.steps=5000 (or more "
            "trainer.epochs, or a smaller trainer.batch_size) trains longer"
        )
    if trainer.step >= trainer.total:
        reporter.line(f"nothing left to train: {trainer.step} steps done, {trainer.total} asked for (trainer.epochs)")
    epochs = trainer.total / trainer.steps_per_epoch
    if trainer.kl.settled > epochs:
        names = [f"kl.{name}" for name in ("warmup", "period", "cycles") if hasattr(trainer.kl, name)]
        reporter.warn(
            f"the KL schedule takes {trainer.kl.settled:g} epochs to settle but the run has {epochs:g}: "
            f"shorten it ({', '.join(names) or 'its duration'}) or train longer"
        )


def _finish(config: Config, dataset: Dataset, trainer: Trainer, reporter: Reporter) -> dict[str, Any]:
    """Evaluate the chosen weights on every split, in fp32 as vae-eval does, draw the figures, write the summary."""
    vae, device, spec = trainer.evaluated, trainer.device, dataset.spec
    vae.products = torch.float32
    set_up(threads=config.trainer.threads)
    note, epoch = f"last weights (epoch {trainer.epoch:g})", trainer.epoch
    if config.trainer.final == "best" and trainer.best is not None:
        vae.load_state_dict(trainer.best["model"])
        epoch = trainer.best["epoch"]
        note = f"best weights by valid/{trainer.objective.selection} (epoch {epoch:g})"
    effort = _effort(config, dataset, trainer)
    sets: dict[str, Resident | None] = {
        "train": dataset.fixed_train(device, effort.train, config.data.seed),
        "valid": trainer.valid,
        "test": dataset.resident("test", device),
    }
    summary: dict[str, Any] = {}
    results: dict[str, metrics.Evaluation] = {}
    for split, data in sets.items():
        if data is not None:
            draws = metrics.enough_draws(vae, data, effort.draws)
            results[split] = result = metrics.evaluate(vae, data, samples=draws)
            shown, shown_result, shown_split = data, result, split
            summary |= result.scalars(split)
            bits = metrics.bits_per_dim(result.elbo, spec, vae.likelihood)
            summary |= {} if bits is None else {f"{split}/bits_per_dim": bits}
    summary |= _named(shown_split, _beyond(config, effort, vae, shown, shown_result, reporter))
    if config.score not in summary and trainer.valid is not None:
        summary |= _named("valid", _log_likelihood(config, effort, vae, trainer.valid, results["valid"], reporter))
    summary |= {
        "measure": metrics.measure(dataset, vae.likelihood, conditional=vae.conditional),
        "train/examples": effort.train,
        "final_samples": effort.draws,
        "parameters": sum(p.numel() for p in vae.parameters()),
        "train_seconds": round(trainer.seconds, 3),
        "examples_per_second": round(trainer.step * trainer.batch_size / max(trainer.seconds, 1e-9), 1),
        "epochs": round(trainer.epoch, 4),
        "steps": trainer.step,
        "evaluated_epoch": round(epoch, 4),
        "stopped_by": trainer.stopped_by,
    }
    if told := effort.told(config, dataset):
        reporter.line(f"{told}; vae-eval run={os.path.relpath(reporter.folder)} spares nothing")
    for line in diagnosis.warnings(reporter.history(), trainer.kl.settled):
        reporter.warn(line)
    if worse := metrics.worse_than_no_model(shown_result, shown_split, spec, vae.likelihood, shown):
        reporter.warn(worse)
    settings = flat(config.plain)
    watched = results["valid" if trainer.valid is not None else "train"]
    reporter.pictures(trainer.step + 1, vae, trainer.watched, watched.kl_by_dimension)  # void if the run goes on
    reporter.finish(summary, settings, trainer.step, note)
    reporter.attempt("figures", lambda: reporter.figures(vae, shown, shown_result))
    reporter.attempt("the Projector's codes", lambda: reporter.codes(trainer.step, vae, shown))
    title = f"{name_of('model', config.model)} on {name_of('data', config.data)}"
    dimensions = f"{config.model.latent_dim} latent dimension{'s' if config.model.latent_dim > 1 else ''}"
    about = f"{name_of('likelihood', config.likelihood)}, {dimensions}; {shown_split} examples, {note}"
    heading = page.Heading(title, about, shown_split, summary, settings)
    reporter.attempt("report.html", lambda: reporter.page(vae, shown, shown_result, heading))
    reporter.conclude(summary)
    return summary


@dataclass(frozen=True)
class Effort:
    """What the final numbers are computed from: draws of z, training examples, and examples of log p(x) (None: all)."""

    draws: int
    train: int
    weighed: int | None

    def told(self, config: Config, dataset: Dataset) -> str:
        """Say what is spared, if anything."""
        most, spared = config.trainer.log_likelihood_examples, []
        if self.draws < config.trainer.final_samples:
            spared.append(f"{self.draws} draw{'s' if self.draws > 1 else ''} of z (trainer.final_samples)")
        if self.train < min(EVALUATED, len(dataset.train)):
            spared.append(f"{self.train:,} training examples")
        if self.weighed is not None and most is not None and self.weighed < min(most, dataset.most_held_out):
            spared.append(f"{self.weighed} examples of log p(x) (trainer.log_likelihood_examples)")
        return f"the final numbers rest on {', '.join(spared)}: more would take longer than training" if spared else ""


def _effort(config: Config, dataset: Dataset, trainer: Trainer) -> Effort:
    """Bound what the final numbers cost: they decode as often as training does at most, for ELBOs and for log p(x).

    The bound counts decodings, not seconds, so that the same settings always give the same numbers.
    """
    decodes = max(ALWAYS // dataset.spec.size, trainer.total * trainer.batch_size)
    held_out = sum(n for split, n in dataset.sizes.items() if split != "train")
    train = min(EVALUATED, len(dataset.train))
    draws = max(1, min(config.trainer.final_samples, decodes // (train + held_out)))
    if draws == 1:
        train = min(train, max(FEW_EVALUATED, decodes - held_out))
    weighed = config.trainer.log_likelihood_examples
    if weighed is not None:
        weighed = min(weighed, max(FEW_WEIGHED, decodes // max(1, config.trainer.log_likelihood_samples)))
    return Effort(draws, train, weighed)


def _beyond(
    config: Config, effort: Effort, vae: VAE, data: Resident, whole: metrics.Evaluation, reporter: Reporter
) -> dict[str, float]:
    """Return log p(x), the gap to the ELBO, and what the aggregate posterior says, from a modest number of draws."""
    numbers = metrics.aggregate(vae, data)
    if config.trainer.log_likelihood_samples:
        numbers |= _log_likelihood(config, effort, vae, data, whole, reporter)
    return numbers


def _log_likelihood(
    config: Config, effort: Effort, vae: VAE, data: Resident, whole: metrics.Evaluation, reporter: Reporter
) -> dict[str, float]:
    samples = config.trainer.log_likelihood_samples
    some = data.part(effort.weighed or len(data))
    estimate = metrics.log_likelihood(vae, some, samples=samples, compiled=config.trainer.compile)
    numbers = metrics.numbers(estimate, whole, len(data))
    if numbers["effective_samples"] < FEW:
        reporter.line(
            f"log_likelihood rests on {numbers['effective_samples']:.1f} of {samples} draws an example: a lower "
            f"bound, tighter by vae-eval {shell_assignment('run', os.path.relpath(reporter.folder))}"
        )
    return numbers


def _named(split: str, numbers: dict[str, float]) -> dict[str, float]:
    return {f"{split}/{key}": value for key, value in numbers.items()}
