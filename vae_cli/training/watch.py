"""What looks after a run: divergence and the way back, posterior collapse, early stopping, hopeless runs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from vae_cli.config.run import Trainer as TrainerSettings
from vae_cli.metrics import Evaluation
from vae_cli.report import Reporter, Silent
from vae_cli.system import parallel, randomness
from vae_cli.system.errors import UserError
from vae_cli.training.pace import Pace
from vae_cli.training.state import State

ROLLBACKS = 3  # at most, in a run that diverges
SKIPS = 100  # steps skipped in a row, give or take a log interval, before a run has diverged
COLLAPSE = "posterior collapse"  # how the warning of it begins
FIRST_STEPS = 300  # units that are dead this early may still become active


class Diverged(UserError):
    """A term or a weight is not finite."""


class Watch:
    """Warns of a run that goes wrong, ends it, or takes it back to its last checkpoint.

    Args:
        state: of the run.
        pace: its counts of steps.
        settings: see conf/trainer/default.yaml.
        settled: the epoch from which the KL weight no longer changes.
        reporter: is told of what was seen.
        hopeless: called with the epoch after each validation; says why the run is given up, None where it is not.
    """

    def __init__(
        self,
        state: State,
        pace: Pace,
        settings: TrainerSettings,
        *,
        settled: float,
        reporter: Reporter | Silent,
        hopeless: Callable[[float], str | None] | None,
    ):
        self.state, self.pace, self.settings, self.settled = state, pace, settings, settled
        self.reporter, self.hopeless = reporter, hopeless
        self.good: tuple[dict[str, Any], dict[str, Any] | None] | None = None  # last state saved, best weights of then

    @property
    def stopped_by(self) -> str | None:
        """What ends training before its last step: early_stopping, prune, or None."""
        patience, unfinished = self.settings.early_stopping, self.state.step < self.pace.total
        if unfinished and patience is not None and self.state.waited >= patience:
            return "early_stopping"
        return "prune" if self.state.given_up and self.settings.prune else None

    def check_validation(self, result: Evaluation) -> None:
        """Look at a validation: warn of collapse, give a hopeless run up."""
        self._warn_of_collapse(result)
        self._give_up_if_hopeless()

    def _warn_of_collapse(self, result: Evaluation) -> None:
        """Warn once, when the KL weight has settled, half the run is over and most units are dead."""
        step, warnings = self.state.step, self.reporter.warnings
        settled = self.pace.epoch(step) >= self.settled and step >= max(self.pace.total // 2, FIRST_STEPS)
        warned = any(line.startswith(COLLAPSE) for line in warnings)
        if settled and not warned and result.units > 1 and result.active_units < result.units / 2:
            self.reporter.warn(
                f"{COLLAPSE}: {result.active_units} of {result.units} latent units are active; "
                "try annealing (kl=linear or kl=cyclical), kl.free_bits=0.25, a smaller kl.weight, "
                "or fewer dimensions (model.latent_dim)"
            )

    def _give_up_if_hopeless(self) -> None:
        hopeless, step = self.hopeless, self.state.step
        if hopeless is None or step >= self.pace.total:
            return
        if why := parallel.from_first_rank(lambda: hopeless(self.pace.epoch(step))):
            self.state.given_up = True
            self.reporter.line(why)

    def check_skipped(self, skipped: int, *, all_skipped: bool) -> None:
        """Warn of steps skipped since the last log.

        Raises:
            Diverged: too many were skipped in a row.
        """
        state = self.state
        if skipped:
            self.reporter.warn(f"{skipped} steps by step {state.step} were skipped: loss or gradient was not finite")
        state.skipped_in_row = state.skipped_in_row + skipped if all_skipped else 0
        if state.skipped_in_row >= SKIPS:
            raise self._diverged(f"loss or gradient of {state.skipped_in_row} steps in a row")

    def refuse_infinite(self, terms: dict[str, float]) -> None:
        """Refuse to go on where a term is not finite.

        Raises:
            Diverged: names the terms.
        """
        if bad := [name for name, value in terms.items() if not math.isfinite(value)]:
            raise self._diverged(", ".join(bad))

    def refuse_infinite_weights(self) -> None:
        """Keep the last good checkpoint: weights that are not finite are not saved.

        Raises:
            Diverged: there are such.
        """
        if not all(bool(p.isfinite().all()) for p in self.state.stepper.vae.parameters()):
            raise self._diverged("weights")

    def _diverged(self, what: str) -> Diverged:
        saved = self.state.saved_step
        kept = "no checkpoint was written yet" if saved is None else f"the checkpoint of step {saved} is kept"
        return Diverged(
            f"training diverged: {what} not finite by step {self.state.step}; {kept}; "
            "lower optimizer.lr, set trainer.grad_clip=1, standardise the data, or raise likelihood.min_scale"
        )

    def remember(self) -> None:
        """Keep the state of now, where the run may have to go back to it (trainer.on_nan=rollback)."""
        if self.settings.on_nan == "rollback":
            self.good = copy.deepcopy(self.state.state_dict()), self.state.best

    def roll_back(self, error: Diverged) -> None:
        """Go back to the state saved last, with half the learning rate and new random draws; three times at most.

        Raises:
            Diverged: that is not asked for, or does not help.
        """
        if self.good is None or self.state.rollbacks == ROLLBACKS:
            raise error
        rollbacks, step = self.state.rollbacks + 1, self.state.step
        self._return_to(*self.good)
        self.state.rollbacks = rollbacks
        self.reporter.rewind(self.state.step)
        self.reporter.warn(
            f"{str(error).partition(';')[0]}: gone back from step {step} to step {self.state.step} with half the "
            f"learning rate ({rollbacks} of {ROLLBACKS} times at most)"
        )

    def _return_to(self, good: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Load a state, except for the random draws: the same ones would diverge again."""
        device = self.state.stepper.device
        draws = randomness.state_dict(device)
        self.state.load_state_dict(copy.deepcopy(good), best)
        self.state.best_is_new = False
        randomness.load_state_dict(draws, device)
