"""The loop: step, validate, checkpoint. The only place that counts steps and chooses the device."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from signal import Signals
from typing import Any

import torch
from torch import Tensor

from vae_cli import metrics
from vae_cli.config.run import Trainer as TrainerSettings
from vae_cli.config.types import parse_interval
from vae_cli.data import Dataset
from vae_cli.kl import Constant
from vae_cli.lr_schedule import ConstantLR
from vae_cli.objective import Objective
from vae_cli.report import Reporter, Silent
from vae_cli.system import parallel, randomness
from vae_cli.system.checkpoint import count_in
from vae_cli.system.errors import UserError
from vae_cli.system.interruption import SIGNALS, Interruption
from vae_cli.training.step import Step
from vae_cli.vae import VAE

ROLLBACKS = 3  # at most, in a run that diverges
SKIPS = 100  # steps in a row, or a few more, that are skipped before the run is taken to have diverged
COLLAPSE = "posterior collapse"  # how the warning of it begins
FIRST_STEPS = 300  # units that are still dead this early may yet awake
WATCHED = 1000  # training examples that stand in for validation where there is none
PICTURES = 10  # times in a run, at most, that pictures go to TensorBoard on the way
DRAWING = 0.004  # of the time that training takes may have gone into them when they are drawn again
FIRST_DRAWING = 0.02  # seconds that are taken to have gone into them at the start


class Diverged(UserError):
    """A term or a weight is not finite."""


class Trainer:
    """Trains a VAE.

    Args:
        vae: on its device.
        objective: on the same device.
        kl: schedule of the KL weight.
        optimizer: over the parameters of `vae` and `objective`.
        lr_schedule: of the learning rate.
        dataset: examples.
        settings: see conf/trainer/default.yaml.
        seed: of the order of examples.
        reporter: what writes for people.
        save: called with (best state or None, last state) to put them to disk.

    Attributes:
        hopeless: called with the epoch after each validation; says why the run is given up, None where it is not.
    """

    def __init__(
        self,
        *,
        vae: VAE,
        objective: Objective,
        kl: Constant,
        optimizer: torch.optim.Optimizer,
        lr_schedule: ConstantLR,
        dataset: Dataset,
        settings: TrainerSettings,
        seed: int,
        reporter: Reporter | Silent,
        save: Callable[[dict[str, Any] | None, dict[str, Any]], None],
    ):
        self.vae, self.objective, self.kl = vae, objective, kl
        self.optimizer, self.lr_schedule = optimizer, lr_schedule
        self.settings, self.seed, self.reporter, self.save_to_disk = settings, seed, reporter, save
        self.hopeless: Callable[[float], str | None] | None = None
        self.given_up = False
        self.device = next(vae.parameters()).device
        train = dataset.resident("train", self.device, settings.resident)
        assert train is not None
        self.train, self.valid = train, dataset.resident("valid", self.device)
        self.watched = self.valid or dataset.fixed_train(self.device, WATCHED, seed=0)
        self.batch_size = min(settings.batch_size, len(self.train))
        self.shares = (settings.accumulate, parallel.count())
        refuse_uneven(self.batch_size, *self.shares)
        self.steps_per_epoch = epoch_length(settings, len(self.train))
        self.checkpoint_every = pace_of_checkpoints(settings)
        self.total = settings.steps or settings.epochs * self.steps_per_epoch
        self.stepper = Step(
            vae=vae, objective=objective, optimizer=optimizer, kl=kl, data=self.train, settings=settings
        )
        self.scheduled: list[Any] = [part for part in vae.modules() if hasattr(part, "at_epoch")]
        self.lr = [group["lr"] for group in optimizer.param_groups]
        self.step, self.seconds, self.saved = 0, 0.0, time.monotonic()
        self.best: dict[str, Any] | None = None
        self.best_is_new, self.waited = False, 0
        self.rollbacks, self.in_vain = 0, 0
        self.good: tuple[dict[str, Any], dict[str, Any] | None] | None = None  # the last state and the best of then
        self.since, self.since_step = time.perf_counter(), 0
        self.next_agreement, self.time_is_up = 0, False
        self.kept: int | None = None
        self.drawing = FIRST_DRAWING

    @property
    def epoch(self) -> float:
        """Passes over the training examples so far."""
        return self.step / self.steps_per_epoch

    @property
    def how(self) -> str:
        """What steps run on, in words."""
        ways = ["compiled"] * self.settings.compile + ["graph"] * self.stepper.graphs
        ways += [] if self.train.resident else ["data streamed"]
        ways += [f"{parallel.count()} ranks"] if parallel.count() > 1 else []
        return " ".join([self.device.type, self.settings.precision, *ways])

    @property
    def evaluated(self) -> VAE:
        """The model whose numbers count: the averaged weights where there are any."""
        return self.stepper.averaged if self.stepper.averaged is not None else self.vae

    def fit(self) -> None:
        """Train to the last step or until something stops it before; end with a validation and a checkpoint."""
        self.vae.train()
        self._remember()
        self.reporter.begin(self.step, self.total)
        indices = self._indices()
        self.since, self.since_step = time.perf_counter(), self.step
        started, before = time.perf_counter(), self.seconds
        with Interruption() as interruption:
            while self.step < self.total and self.stopped_by is None:
                self._update(next(indices))
                self.step += 1
                self.reporter.advance(self.step)
                self.seconds = before + time.perf_counter() - started
                wishes = self._agreed(interruption.asked)
                try:
                    self._keep_up()
                except Diverged as error:
                    self._roll_back(error)
                    indices = self._indices()
                if wishes and self.step < self.total and self.stopped_by is None:
                    self.save()
                    interruption.grant(wishes)
            if self.step > self.since_step:
                self._log()
            self.save()
            interruption.grant(_of_all(interruption.asked)[0])

    def _agreed(self, asked: list[Signals]) -> list[Signals]:
        """Return which signals asked any rank to stop, and see whether a checkpoint is due by the first one's clock.

        Ranks ask one another about twice a second, at steps that the first chooses for all.
        """
        if parallel.count() == 1:
            self.time_is_up = self._minutes_are_over()
            return asked[:]
        if self.step < self.next_agreement:
            self.time_is_up = False
            return []
        first = parallel.rank() == 0
        pace = (self.step - self.since_step) / max(time.perf_counter() - self.since, 1e-9)
        due = first and self._minutes_are_over()
        wishes, due_now, wait = _of_all(asked, due, max(1.0, 0.5 * pace) if first else 0.0)
        self.next_agreement, self.time_is_up = self.step + int(wait), due_now > 0.0
        return wishes

    def _minutes_are_over(self) -> bool:
        amount, unit = self.checkpoint_every
        return unit == "minutes" and time.monotonic() - self.saved >= 60.0 * amount

    def _keep_up(self) -> None:
        """Log, validate and save when they are due. Host and device meet here alone."""
        last = self.step == self.total
        if self.step % self.settings.log_every == 0:
            self._log()
        every = max(1, round(self.settings.validate_every * self.steps_per_epoch))
        if self.step % every == 0 or last:
            self._validate(every)
        if self._checkpoint_is_due() and not last:
            self.save()

    def _checkpoint_is_due(self) -> bool:
        amount, unit = self.checkpoint_every
        if unit == "minutes":
            return self.time_is_up
        return self.step % max(1, round(amount * (self.steps_per_epoch if unit == "epochs" else 1))) == 0

    def _indices(self) -> Iterator[Tensor]:
        """Yield the index [k, b] of each batch from here on, epoch after epoch, and announce the one after it.

        A batch has k parts (trainer.accumulate), of each of which this rank has its share of b examples.
        """
        while True:
            epoch, done = divmod(self.step, self.steps_per_epoch)
            order = self.train.order(self.seed, epoch)[: self.steps_per_epoch * self.batch_size]
            left = order.view(self.steps_per_epoch, *self.shares, -1)[done:, :, parallel.rank()]
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
        for part in self.scheduled:
            part.at_epoch(self.epoch)
        factor = self.lr_schedule.factor(self.epoch + 0.5 / self.steps_per_epoch)
        self.stepper(
            index,
            weight=self.kl.weight(self.epoch),
            target=self.kl.target(self.epoch),
            lr=[lr * factor * 0.5**self.rollbacks for lr in self.lr],
            decay=min(self.settings.ema or 0.0, (1.0 + self.step) / (10.0 + self.step)),
        )

    def _log(self) -> None:
        """Report the means since the last log: the one transfer from the device of an interval."""
        terms, norm, weight, skipped = self.stepper.take()
        if skipped:
            self.reporter.warn(f"{skipped} steps by step {self.step} were skipped: loss or gradient was not finite")
        self.in_vain = 0 if terms else self.in_vain + skipped
        if self.in_vain >= SKIPS:
            raise Diverged(self._diverged(f"loss or gradient of {self.in_vain} steps in a row"))
        now = time.perf_counter()
        rate = (self.step - self.since_step) * self.batch_size / max(now - self.since, 1e-9)
        scalars = {f"train/{name}": value for name, value in terms.items()}
        scalars |= {"train/kl_weight": weight, "train/grad_norm": norm, "train/examples_per_second": rate}
        scalars["train/learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        self.since, self.since_step = now, self.step
        self.reporter.scalars(self.step, self.epoch, scalars)
        self._refuse_infinite(terms)

    def _roll_back(self, error: Diverged) -> None:
        """Go back to the state that was saved last, with half the learning rate and other draws; three times at most.

        Raises:
            Diverged: that is not asked for, or does not help.
        """
        if self.good is None or self.rollbacks == ROLLBACKS:
            raise error
        rollbacks, step = self.rollbacks + 1, self.step
        draws, (state, best) = randomness.state_dict(self.device), self.good
        self.load_state_dict(copy.deepcopy(state), best)
        randomness.load_state_dict(draws, self.device)
        self.rollbacks, self.best_is_new, self.next_agreement = rollbacks, False, self.step
        self.reporter.rewind(self.step)
        self.since, self.since_step = time.perf_counter(), self.step
        self.reporter.warn(
            f"{str(error).partition(';')[0]}: gone back from step {step} to step {self.step} with half the learning "
            f"rate ({rollbacks} of {ROLLBACKS} times at most)"
        )

    def _refuse_infinite(self, terms: dict[str, float]) -> None:
        if bad := [name for name, value in terms.items() if not math.isfinite(value)]:
            raise Diverged(self._diverged(", ".join(bad)))

    def _diverged(self, what: str) -> str:
        kept = "no checkpoint was written yet" if self.kept is None else f"the checkpoint of step {self.kept} is kept"
        return (
            f"training diverged: {what} not finite by step {self.step}; {kept}; "
            "lower optimizer.lr, set trainer.grad_clip=1, standardise the data, or raise likelihood.min_scale"
        )

    def _validate(self, every: int) -> None:
        """Evaluate the watched examples; keep the best weights where they are validation examples."""
        draws = metrics.enough_draws(self.evaluated, self.watched)
        result = metrics.evaluate(self.evaluated, self.watched, samples=draws)
        self._refuse_infinite({"elbo": result.elbo, "reconstruction": result.reconstruction, "kl": result.kl})
        if self.valid is not None:
            score = self._score(result)
            self.lr_schedule.observe(score)
            self.waited += 1
            if self.best is None or score > self.best["score"]:
                self.best, self.best_is_new, self.waited = self._best(score), True, 0
        split = "valid" if self.valid is not None else "train"
        selection = self.objective.selection
        beside = {f"valid/{selection}": score} if self.valid is not None and selection != "elbo" else {}
        self.reporter.validation(self.step, self.epoch, result, split, self.kl.weight(self.epoch), beside)
        self._watch_for_collapse(result)
        self._give_up_if_hopeless()
        if self._pictures_are_due(self.step // every, self.total // every):
            start = time.perf_counter()
            self.reporter.pictures(self.step, self.evaluated, self.watched, result.kl_by_dimension)
            self.drawing += time.perf_counter() - start

    def _pictures_are_due(self, nth: int, count: int) -> bool:
        """Whether this validation, of so many, has its turn and its time; the last pictures are the finished run's."""
        has_turn = nth % max(1, math.ceil(count / PICTURES)) == 0
        return has_turn and self.step < self.total and self.drawing <= DRAWING * self.seconds

    def _score(self, result: metrics.Evaluation) -> float:
        """Return the number that the best weights are chosen by: the same on every rank."""
        valid = self.valid
        assert valid is not None
        return parallel.by_first(lambda: metrics.score(self.objective, self.evaluated, valid, result))

    def _best(self, score: float) -> dict[str, Any]:
        weights = {name: value.detach().clone() for name, value in self.evaluated.state_dict().items()}
        return {"model": weights, "score": score, "step": self.step, "epoch": self.epoch}

    def _watch_for_collapse(self, result: metrics.Evaluation) -> None:
        """Warn once, when the KL weight has settled, half the run is over and most units are dead."""
        settled = self.epoch >= self.kl.settled and self.step >= max(self.total // 2, FIRST_STEPS)
        warned = any(line.startswith(COLLAPSE) for line in self.reporter.warnings)
        if settled and not warned and result.units > 1 and result.active_units < result.units / 2:
            self.reporter.warn(
                f"{COLLAPSE}: {result.active_units} of {result.units} latent units are active; "
                "try annealing (kl=linear or kl=cyclical), kl.free_bits=0.25, a smaller kl.weight, "
                "or fewer dimensions (model.latent_dim)"
            )

    def _give_up_if_hopeless(self) -> None:
        hopeless = self.hopeless
        if hopeless is not None and self.step < self.total and (why := parallel.by_first(lambda: hopeless(self.epoch))):
            self.given_up = True
            self.reporter.line(why)

    @property
    def stopped_by(self) -> str | None:
        """What ends training before its last step: early_stopping or prune; None for nothing so far."""
        patience = self.settings.early_stopping
        if self.step < self.total and patience is not None and self.waited >= patience:
            return "early_stopping"
        return "prune" if self.given_up and self.settings.prune else None

    def save(self) -> None:
        """Put the best state (where it is new) and everything needed to go on to disk."""
        self._refuse_infinite_weights()
        self.save_to_disk(self.best if self.best_is_new else None, self.state_dict())
        self.best_is_new, self.saved, self.kept = False, time.monotonic(), self.step
        self._remember()

    def _remember(self) -> None:
        """Keep what the run may have to go back to."""
        if self.settings.on_nan == "rollback":
            self.good = copy.deepcopy(self.state_dict()), self.best

    def _refuse_infinite_weights(self) -> None:
        """Keep the last good checkpoint: weights that are not finite are not saved."""
        if not all(bool(p.isfinite().all()) for p in self.vae.parameters()):
            raise Diverged(self._diverged("weights"))

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training goes on from."""
        return {
            "model": self.vae.state_dict(),
            "averaged": None if self.stepper.averaged is None else self.stepper.averaged.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best_score": None if self.best is None else self.best["score"],
            "waited": self.waited,
            "given_up": self.given_up,
            "rollbacks": self.rollbacks,
            "in_vain": self.in_vain,
            "warnings": list(self.reporter.warnings),
            "sums": parallel.gather(self.stepper.sums[None]),  # [N, T] of N ranks: added up later, they round as now
            "summed": self.stepper.summed,
            "skipped": self.stepper.skipped,
            "random": randomness.state_dict(self.device),
        }

    def load_state_dict(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Go on from where `state_dict` was taken."""
        self.vae.load_state_dict(state["model"])
        if self.stepper.averaged is not None:
            self.stepper.averaged.load_state_dict(state["averaged"] or state["model"])
        self.objective.load_state_dict(state["objective"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        self.step, self.waited = count_in(state, "step"), count_in(state, "waited")
        self.seconds = float(state["seconds"])
        if best is not None:
            best = best | {"score": float(best["score"]), "step": count_in(best, "step"), "epoch": float(best["epoch"])}
            if best["step"] > self.step:  # killed between the writes of best.pt and last.pt
                best["score"] = -math.inf if state["best_score"] is None else float(state["best_score"])
        self.best, self.given_up = best, bool(state["given_up"])
        self.rollbacks, self.in_vain = count_in(state, "rollbacks"), count_in(state, "in_vain")
        self.reporter.warnings += [line for line in map(str, state["warnings"]) if line not in self.reporter.warnings]
        self.stepper.reset()
        self.stepper.sums.copy_(_own_sums(torch.atleast_2d(state["sums"])))
        self.stepper.skipped.copy_(state["skipped"])
        self.stepper.summed = count_in(state, "summed")
        randomness.load_state_dict(state["random"], self.device)


def _own_sums(sums: Tensor) -> Tensor:
    """Return this rank's sums [T] of those of all ranks [N, T]; where there were more or fewer, their mean."""
    return sums[parallel.rank()] if len(sums) == parallel.count() else sums.mean(0)


def _of_all(asked: list[Signals], *numbers: float) -> tuple[Any, ...]:
    """Return the signals that any rank was sent, and the largest that any gives of further numbers."""
    found = parallel.most([*(float(each in asked) for each in SIGNALS), *numbers])
    return [each for each, came in zip(SIGNALS, found, strict=False) if came], *found[len(SIGNALS) :]


def refuse_uneven(batch: int, parts: int, ranks: int) -> None:
    """Refuse a batch that does not divide among ranks and parts.

    Raises:
        UserError: it does not.
    """
    if left := batch % (parts * ranks):
        among = " × ".join([f"{ranks} ranks"] * (ranks > 1) + [f"trainer.accumulate={parts}"] * (parts > 1))
        near = ", ".join(str(size) for size in (batch - left, batch - left + parts * ranks) if size)
        raise UserError(f"trainer.batch_size={batch}: does not divide among {among}; {near} are allowed")


def pace_of_checkpoints(settings: TrainerSettings) -> tuple[float, str]:
    """Return how much of what passes between two checkpoints; where a run may go back to one, not by the clock."""
    by_itself = "1000 steps" if settings.on_nan == "rollback" else "1 minute"
    return parse_interval(by_itself if settings.checkpoint_every == "auto" else settings.checkpoint_every)


def epoch_length(settings: TrainerSettings, n: int) -> int:
    """Return the steps of one pass over n examples; a remainder too small for a batch waits for the next shuffle."""
    return n // min(settings.batch_size, n)
