"""The loop: step, log, validate, checkpoint. Read it from top to bottom.

What is due when stands in `pace`, what looks after the run in `watch`, what a checkpoint holds in `state`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from vae_cli import metrics
from vae_cli.data import Resident
from vae_cli.kl import Constant
from vae_cli.report import Reporter, Silent
from vae_cli.system import parallel
from vae_cli.system.interruption import Interruption
from vae_cli.training.pace import Clock, Pace, PictureBudget, over_ranks
from vae_cli.training.state import State
from vae_cli.training.watch import Diverged, Watch


class Trainer:
    """Trains a VAE.

    Args:
        state: how far the run is; holds what takes its steps (`vae_cli.training.step`).
        train: training examples.
        valid: validation examples, or None.
        watched: what validations look at: `valid`, or else some training examples.
        kl: schedule of the KL weight.
        seed: of the order of examples.
        pace: the steps at which something is due.
        clock: says when a checkpoint is due.
        watch: looks after divergence, collapse and hopeless runs.
        reporter: what writes for people.
        save: called with (best state or None, last state) to put them to disk.
    """

    def __init__(
        self,
        *,
        state: State,
        train: Resident,
        valid: Resident | None,
        watched: Resident,
        kl: Constant,
        seed: int,
        pace: Pace,
        clock: Clock,
        watch: Watch,
        reporter: Reporter | Silent,
        save: Callable[[dict[str, Any] | None, dict[str, Any]], None],
    ):
        self.state, self.stepper, self.lr_schedule = state, state.stepper, state.lr_schedule
        self.train, self.valid, self.watched = train, valid, watched
        self.kl, self.seed, self.reporter, self.save_to_disk = kl, seed, reporter, save
        self.pace, self.clock, self.watch, self.budget = pace, clock, watch, PictureBudget(pace)
        self.scheduled: list[Any] = [part for part in self.stepper.vae.modules() if hasattr(part, "at_epoch")]
        self.lr = [group["lr"] for group in self.stepper.optimizer.param_groups]

    @property
    def epoch(self) -> float:
        """Passes over the training examples so far."""
        return self.pace.epoch(self.state.step)

    @property
    def over(self) -> bool:
        """Whether the last step is done, or something stopped the run before it."""
        return self.state.step >= self.pace.total or self.watch.stopped_by is not None

    def fit(self) -> None:
        """Train to the last step or until something stops it before; end with a validation and a checkpoint."""
        state, clock = self.state, self.clock
        self.stepper.vae.train()
        self.watch.remember()
        self.reporter.begin(state.step, self.pace.total)
        indices = self._indices()
        clock.restart(state.step)
        started, before = time.perf_counter(), state.seconds
        with Interruption() as interruption:
            while not self.over:
                self._update(next(indices))
                state.step += 1
                self.reporter.advance(state.step)
                state.seconds = before + time.perf_counter() - started
                requests = clock.sync_ranks(state.step, interruption.requests)
                try:
                    self._log_validate_save()
                except Diverged as error:
                    self.watch.roll_back(error)
                    clock.restart(state.step)
                    indices = self._indices()
                if requests and not self.over:
                    self.save()
                    interruption.honour(requests)
            if state.step > clock.since_step:
                self._log()
            self.save()
            interruption.honour(over_ranks(interruption.requests)[0])

    def _log_validate_save(self) -> None:
        """Do what is due after a step. Host and device wait for one another here alone."""
        step = self.state.step
        if self.pace.log_is_due(step):
            self._log()
        if self.pace.validation_is_due(step):
            self._validate()
        if self.clock.checkpoint_is_due(step) and step < self.pace.total:
            self.save()

    def _indices(self) -> Iterator[Tensor]:
        """Yield the index [k, b] of each batch from here on, epoch after epoch; prefetch the one after it.

        A batch has k parts (trainer.accumulate), of each of which this rank has its share of b examples.
        """
        pace = self.pace
        while True:
            epoch, done = divmod(self.state.step, pace.steps_per_epoch)
            order = self.train.order(self.seed, epoch)[: pace.steps_per_epoch * pace.batch_size]
            left = order.view(pace.steps_per_epoch, *pace.shares, -1)[done:, :, parallel.rank()]
            index = left[0]
            for k in range(1, len(left)):
                after = left[k]
                for part in after:
                    self.train.prefetch(part)
                yield index
                index = after
            yield index

    def _update(self, index: Tensor) -> None:
        """Take one step under the schedules of now. Nothing here waits for the device."""
        epoch, step = self.epoch, self.state.step
        for part in self.scheduled:
            part.at_epoch(epoch)
        factor = self.lr_schedule.factor(epoch + 0.5 / self.pace.steps_per_epoch)
        self.stepper(
            index,
            weight=self.kl.weight(epoch),
            target=self.kl.target(epoch),
            lr=[lr * factor * 0.5**self.state.rollbacks for lr in self.lr],
            decay=min(self.stepper.settings.ema or 0.0, (1.0 + step) / (10.0 + step)),
        )

    def _log(self) -> None:
        """Report the means since the last log: the one transfer from the device of an interval."""
        step = self.state.step
        terms, norm, weight, skipped = self.stepper.take()
        self.watch.check_skipped(skipped, all_skipped=not terms)
        scalars = {f"train/{name}": value for name, value in terms.items()}
        scalars |= {"train/kl_weight": weight, "train/grad_norm": norm}
        scalars["train/examples_per_second"] = self.clock.steps_per_second(step) * self.pace.batch_size
        scalars["train/learning_rate"] = float(self.stepper.optimizer.param_groups[0]["lr"])
        self.clock.lap(step)
        self.reporter.scalars(step, self.epoch, scalars)
        self.watch.refuse_infinite(terms)

    def _validate(self) -> None:
        """Evaluate the watched examples; keep the best weights where they are validation examples."""
        vae, step = self.stepper.evaluated, self.state.step
        result = metrics.evaluate(vae, self.watched, samples=metrics.enough_draws(vae, self.watched))
        self.watch.refuse_infinite({"elbo": result.elbo, "reconstruction": result.reconstruction, "kl": result.kl})
        beside, selection = {}, self.stepper.objective.selection
        if self.valid is not None:
            score = self._score(result)
            self.state.observe(score, self.epoch)
            beside = {f"valid/{selection}": score} if selection != "elbo" else {}
        split = "train" if self.valid is None else "valid"
        self.reporter.validation(step, self.epoch, result, split, self.kl.weight(self.epoch), beside)
        self.watch.check_validation(result)
        if self.budget.allows(step, self.state.seconds):
            with self.budget.spending():
                self.reporter.pictures(step, vae, self.watched, result.kl_by_dimension)

    def _score(self, result: metrics.Evaluation) -> float:
        """Return the number that the best weights are chosen by: the same on every rank."""
        vae, valid = self.stepper.evaluated, self.valid
        assert valid is not None
        return parallel.from_first_rank(lambda: metrics.score(self.stepper.objective, vae, valid, result))

    def save(self) -> None:
        """Put the best state (where it is new) and everything needed to go on to disk."""
        self.watch.refuse_infinite_weights()
        self.save_to_disk(self.state.best if self.state.best_is_new else None, self.state.state_dict())
        self.state.saved()
        self.clock.saved()
        self.watch.remember()
