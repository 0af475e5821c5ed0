"""From a configuration to a finished run folder."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from vae_cli import metrics
from vae_cli.config import refuse_without_validation
from vae_cli.config.run import Config
from vae_cli.data import Dataset
from vae_cli.finished import about_data, changed, describe
from vae_cli.objective import Objective, Penalty
from vae_cli.parts import build, load_dataset, name_of, own_parts
from vae_cli.report import Reporter, Silent
from vae_cli.system import checkpoint, parallel
from vae_cli.system.device import choose_device
from vae_cli.system.disk import refuse_links
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.lock import locked
from vae_cli.system.machine import explain_out_of_memory, flushing, prepare_compiler, set_up
from vae_cli.system.randomness import seed_everything
from vae_cli.training.assembly import build_objective, build_trainer
from vae_cli.training.finish import finish
from vae_cli.training.introduce import introduce
from vae_cli.training.resume import load_states
from vae_cli.vae import VAE

STARTING = 10_000  # training examples at most that parts start from


def train(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    sweeping: bool = False,
    accepted: Callable[[], None] = lambda: None,
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
    with alone as present, explain_out_of_memory(), parallel.explain_lost_rank(), flushing():
        if parallel.rank() == 0 and not resume and (folder / "checkpoints" / checkpoint.LAST).is_file():
            raise UserError(f"{folder}: another process has trained there just now; start again to go on from it")
        _set_up_process(config, device)
        try:
            return _Run(config, folder, device, resume, sweeping, present).train(accepted)
        finally:
            if device.type == "cuda":
                gc.collect()  # what a job of a sweep held of the device is the next one's


class _Run:
    """One run in the making: data, model and objective, all checked, before anything is written.

    Args:
        config: what to train.
        folder: of the run.
        device: to train on.
        resume: go on from the folder's last checkpoint.
        sweeping: whether its folder stands among those of a sweep's other jobs.
        present: raises a UserError once the folder is no longer there.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: torch.device,
        resume: bool,
        sweeping: bool,
        present: Callable[[], None],
    ):
        self.config, self.folder, self.device, self.present = config, folder, device, present
        self.pruned = sweeping and bool(config.trainer.prune)
        self.dataset = _load_data(config)
        seed_everything(config.seed)
        self.vae = _build_model(config, self.dataset, device, fresh=not resume)
        self.objective = build_objective(config, self.vae, self.dataset, device)
        _try_own_parts(self.vae, self.objective, self.dataset, config, device)
        self.notes: list[str] = []  # of damaged checkpoints
        self.last, self.best = self._states() if resume else (None, None)

    def _states(self) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        """Return the last and best state of the run, on its device."""
        found = parallel.from_first_rank(lambda: load_states(self.folder, self.config, self.dataset, self.notes.append))
        return checkpoint.move(found, self.device)

    def train(self, accepted: Callable[[], None]) -> dict[str, Any]:
        """Train to the end and return the summary; ranks above the first return nothing."""
        config, dataset, reporter = self.config, self.dataset, self._reporter()
        try:
            trainer = build_trainer(
                config, self.vae, self.objective, dataset, reporter, self.folder, pruned=self.pruned
            )
            if self.last is not None:
                with checkpoint.fitting(self.folder / "checkpoints" / checkpoint.LAST):
                    trainer.state.resume(self.last, self.best)
            self.last = self.best = None  # their memory is needed now
            accepted()
            introduce(config, dataset, trainer, reporter, self.folder)
            for line in self.notes:
                reporter.warn(line)
            trainer.fit()
            parallel.part_ways()
            return finish(config, dataset, trainer, reporter) if isinstance(reporter, Reporter) else {}
        finally:
            reporter.close()

    def _reporter(self) -> Reporter | Silent:
        """Return who writes for people: the first rank alone."""
        if parallel.rank() > 0:
            return Silent()
        self.folder.mkdir(parents=True, exist_ok=True)
        return Reporter(
            self.folder,
            self.dataset.spec,
            conditional=self.vae.conditional,
            resumed_at=self.last["step"] if self.last else None,
            refuse_to_go_on_without=self.present,
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


def _load_data(config: Config) -> Dataset:
    with parallel.one_after_another():
        dataset = load_dataset(config)
    _refuse_ranks_of_other_data(dataset)
    if dataset.valid is None:
        refuse_without_validation(config, f"data={name_of('data', config.data)}, which has no validation split here")
    return dataset


def _refuse_ranks_of_other_data(dataset: Dataset) -> None:
    """Refuse to train where a rank has loaded other examples than the first, as from a stale copy.

    Raises:
        UserError: names the first such rank.
    """
    own = changed(parallel.shared(about_data(describe(dataset))), dataset, "there")
    for rank, change in enumerate(parallel.from_all_ranks(own)):
        if change is not None:
            parallel.refuse(f"data: rank {rank} has other examples than rank 0 ({change}); ranks need the same data")


def _build_model(config: Config, dataset: Dataset, device: torch.device, *, fresh: bool) -> VAE:
    """Build the model; a fresh one may start from training examples."""
    vae = build(config, dataset.spec).to(device)
    vae.products = torch.bfloat16 if config.trainer.precision == "bf16" else torch.float32
    if vae.wants_examples and fresh:
        vae.initialize(dataset.fixed_train(device, STARTING, seed=0).batch(slice(0, STARTING)))
    return vae


@torch.no_grad()
def _try_own_parts(vae: VAE, objective: Objective, dataset: Dataset, config: Config, device: torch.device) -> None:
    """Pass two examples through parts of a user's own, so that a mistake in them is reported before training."""
    if not (own := ", ".join(own_parts(config))):
        return
    batch = dataset.fixed_train(device, most=2, seed=0).batch(slice(0, 2))
    try:
        with metrics.evaluation_mode(vae):
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
