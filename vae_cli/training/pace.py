"""When things are due: intervals in steps, the clock of checkpoints, and what ranks decide together."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from signal import Signals

from vae_cli.config.run import Trainer as TrainerSettings
from vae_cli.config.types import parse_interval
from vae_cli.system import parallel
from vae_cli.system.errors import UserError
from vae_cli.system.interruption import SIGNALS

PICTURES = 10  # times in a run, at most, that pictures go to TensorBoard before its end
PICTURE_BUDGET = 0.004  # share of training time that pictures may take
FIRST_PICTURES = 0.02  # seconds that the first pictures are expected to take
SYNC = 0.5  # seconds between two talks of the ranks about signals and checkpoints


class Pace:
    """The counts of a run: steps of an epoch, steps of the whole, and the steps at which something is due.

    Args:
        settings: see conf/trainer/default.yaml.
        examples: number of training examples.

    Attributes:
        batch_size: examples of one step, over all ranks.
        shares: (trainer.accumulate, ranks), what a batch is divided among.
        steps_per_epoch: steps of one pass over the training examples.
        total: steps of the run.
        log_every: steps between two logs.
        validate_every: steps between two validations.
    """

    def __init__(self, settings: TrainerSettings, examples: int):
        self.batch_size = min(settings.batch_size, examples)
        self.shares = (settings.accumulate, parallel.count())
        refuse_uneven(self.batch_size, *self.shares)
        self.steps_per_epoch = epoch_length(settings, examples)
        self.total = settings.steps or settings.epochs * self.steps_per_epoch
        self.log_every = settings.log_every
        self.validate_every = max(1, round(settings.validate_every * self.steps_per_epoch))

    @property
    def epochs(self) -> float:
        """Passes over the training examples of the whole run."""
        return self.total / self.steps_per_epoch

    def epoch(self, step: int) -> float:
        """Return the passes over the training examples after so many steps."""
        return step / self.steps_per_epoch

    def log_is_due(self, step: int) -> bool:
        """Whether the means since the last log are reported after a step."""
        return step % self.log_every == 0

    def validation_is_due(self, step: int) -> bool:
        """Whether a step is followed by a validation; the last one always is."""
        return step % self.validate_every == 0 or step == self.total


class Clock:
    """Measures the steps per second and says when a checkpoint is due, alike on every rank.

    Args:
        interval: amount and unit (steps, epochs, minutes) between two checkpoints.
        steps_per_epoch: for an interval in epochs.
    """

    def __init__(self, interval: tuple[float, str], steps_per_epoch: int):
        self.amount, self.unit = interval
        self.every = max(1, round(self.amount * (steps_per_epoch if self.unit == "epochs" else 1)))
        self.saved_at = time.monotonic()
        self.next_sync, self.time_is_up = 0, False
        self.restart(0)

    def lap(self, step: int) -> None:
        """Measure the steps per second from this step on."""
        self.since, self.since_step = time.perf_counter(), step

    def restart(self, step: int) -> None:
        """Begin at a step, or go back to it."""
        self.lap(step)
        self.next_sync = step

    def steps_per_second(self, step: int) -> float:
        """Return the rate since the last lap."""
        return (step - self.since_step) / max(time.perf_counter() - self.since, 1e-9)

    def checkpoint_is_due(self, step: int) -> bool:
        """Whether a checkpoint is written after a step."""
        return self.time_is_up if self.unit == "minutes" else step % self.every == 0

    def saved(self) -> None:
        """A checkpoint was written."""
        self.saved_at = time.monotonic()

    def sync_ranks(self, step: int, asked: list[Signals]) -> list[Signals]:
        """Return the signals that asked any rank to stop; learn whether the first rank's clock wants a checkpoint.

        Ranks talk about twice a second, at steps that the first rank chooses for all.
        """
        if parallel.count() == 1:
            self.time_is_up = self._minutes_are_over()
            return asked[:]
        if step < self.next_sync:
            self.time_is_up = False
            return []
        first = parallel.rank() == 0
        wait = max(1.0, SYNC * self.steps_per_second(step)) if first else 0.0
        requests, (due, wait) = over_ranks(asked, float(first and self._minutes_are_over()), wait)
        self.next_sync, self.time_is_up = step + int(wait), due > 0.0
        return requests

    def _minutes_are_over(self) -> bool:
        return self.unit == "minutes" and time.monotonic() - self.saved_at >= 60.0 * self.amount


class PictureBudget:
    """Keeps pictures to a few times in a run, and to a small share of its time.

    Attributes:
        spent: seconds that went into pictures so far.
    """

    def __init__(self, pace: Pace):
        self.pace, self.spent = pace, FIRST_PICTURES

    def allows(self, step: int, seconds: float) -> bool:
        """Whether pictures are drawn at the validation of a step, after so many seconds of training.

        The last step's are drawn when the run ends.
        """
        every, total = self.pace.validate_every, self.pace.total
        has_turn = step // every % max(1, math.ceil(total // every / PICTURES)) == 0
        return has_turn and step < total and self.spent <= PICTURE_BUDGET * seconds

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Count the time of the block."""
        start = time.perf_counter()
        yield
        self.spent += time.perf_counter() - start


def over_ranks(asked: list[Signals], *numbers: float) -> tuple[list[Signals], list[float]]:
    """Return the signals that any rank was sent, and the largest that any rank gives of each further number."""
    found = parallel.largest([*(float(each in asked) for each in SIGNALS), *numbers])
    return [each for each, came in zip(SIGNALS, found, strict=False) if came], found[len(SIGNALS) :]


def refuse_uneven(batch: int, parts: int, ranks: int) -> None:
    """Refuse a batch that does not divide among ranks and parts.

    Raises:
        UserError: it does not.
    """
    if left := batch % (parts * ranks):
        among = " × ".join([f"{ranks} ranks"] * (ranks > 1) + [f"trainer.accumulate={parts}"] * (parts > 1))
        near = ", ".join(str(size) for size in (batch - left, batch - left + parts * ranks) if size)
        raise UserError(f"trainer.batch_size={batch}: does not divide among {among}; {near} are allowed")


def checkpoint_interval(settings: TrainerSettings) -> tuple[float, str]:
    """Return amount and unit between two checkpoints.

    By default one a minute; where a run may go back to one, a number of steps, so that equal settings give equal runs.
    """
    auto = "1000 steps" if settings.on_nan == "rollback" else "1 minute"
    return parse_interval(auto if settings.checkpoint_every == "auto" else settings.checkpoint_every)


def epoch_length(settings: TrainerSettings, n: int) -> int:
    """Return the steps of one pass over n examples; a remainder too small for a batch waits for the next shuffle."""
    return n // min(settings.batch_size, n)
