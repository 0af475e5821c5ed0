"""When things are due in a run, and how ranks agree about it."""

import math
from itertools import pairwise
from signal import SIGINT, SIGTERM, SIGUSR1

import pytest

from tests.conftest import configure
from vae_cli.system import parallel
from vae_cli.system.errors import UserError
from vae_cli.training import pace
from vae_cli.training.pace import Clock, Pace, PictureBudget, epoch_length, over_ranks, refuse_uneven


@pytest.fixture(scope="module")
def settings():
    return configure("trainer.batch_size=100", "trainer.epochs=3").trainer


def changed(settings, **values):
    return settings.model_copy(update=values)


@pytest.fixture
def now(monkeypatch):
    """The time of both of the clock's sources, in seconds."""
    found = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: found[0])
    monkeypatch.setattr(pace.time, "perf_counter", lambda: found[0])
    return found


def test_a_remainder_too_small_for_a_batch_waits_for_the_next_shuffle(settings):
    assert [epoch_length(settings, n) for n in (100, 199, 200, 1050)] == [1, 1, 2, 10]
    assert [epoch_length(settings, n) for n in (1, 30, 99)] == [1, 1, 1]  # one batch holds them all


def test_a_run_counts_its_steps(settings):
    counts = Pace(settings, 1050)
    assert (counts.steps_per_epoch, counts.total, counts.epochs, counts.batch_size) == (10, 30, 3.0, 100)
    assert counts.epoch(15) == 1.5
    assert Pace(settings, 7).batch_size == 7
    by_steps = Pace(changed(settings, steps=25), 1050)
    assert (by_steps.total, by_steps.epochs) == (25, 2.5)


def test_logs_and_validations_are_due_at_their_intervals_and_a_validation_at_the_end(settings):
    counts = Pace(changed(settings, steps=25, log_every=4, validate_every=0.7), 1050)
    assert [step for step in range(1, 26) if counts.log_is_due(step)] == [4, 8, 12, 16, 20, 24]
    assert [step for step in range(1, 26) if counts.validation_is_due(step)] == [7, 14, 21, 25]
    often = Pace(changed(settings, validate_every=1e-6), 1050)
    assert all(often.validation_is_due(step) for step in range(1, 31))


@pytest.mark.parametrize(("parts", "ranks"), [(1, 1), (1, 3), (2, 3), (7, 8)])
def test_a_batch_is_refused_just_where_it_leaves_a_remainder(parts, ranks):
    for size in range(1, 200):
        if size % (parts * ranks) == 0:
            refuse_uneven(size, parts, ranks)
            continue
        with pytest.raises(UserError, match=rf"^trainer\.batch_size={size}: does not divide among ") as refused:
            refuse_uneven(size, parts, ranks)
        *_, allowed = str(refused.value).removesuffix(" are allowed").split("; ")
        for near in map(int, allowed.split(", ")):
            assert abs(near - size) < parts * ranks
            refuse_uneven(near, parts, ranks)


@pytest.mark.parametrize(
    ("interval", "due"),
    [((7.0, "steps"), [7, 14]), ((0.5, "epochs"), [5, 10, 15]), ((1e-9, "epochs"), [*range(1, 16)])],
)
def test_checkpoints_by_steps_and_epochs(interval, due):
    clock = Clock(interval, 10)
    assert [step for step in range(1, 16) if clock.checkpoint_is_due(step)] == due


def test_checkpoints_by_the_clock(now):
    clock, saved = Clock((2.0, "minutes"), 10), []
    for step in range(1, 11):
        now[0] += 50.0
        clock.sync_ranks(step, [])
        if clock.checkpoint_is_due(step):
            saved.append(step)
            clock.saved()
    assert saved == [3, 6, 9]


def test_the_rate_is_that_since_the_last_lap(now):
    clock = Clock((1.0, "minutes"), 10)
    now[0] = 5.0
    assert clock.steps_per_second(10) == 2.0
    clock.lap(10)
    now[0] = 6.0
    assert clock.steps_per_second(14) == 4.0
    assert math.isfinite(Clock((1.0, "minutes"), 10).steps_per_second(3))  # no time has passed


def test_a_process_that_is_alone_hears_a_signal_after_each_step():
    asked = [SIGTERM]
    requests = Clock((1.0, "minutes"), 10).sync_ranks(1, asked)
    assert requests == [SIGTERM]
    assert requests is not asked  # signals that come meanwhile are not lost


class Ranks:
    """Two ranks in one process, who talk where both ask at the same step."""

    def __init__(self, monkeypatch, now):
        self.now, self.current, self.talks = now, 0, []
        self.clocks = [Clock((1.0, "minutes"), 10) for _ in range(2)]
        monkeypatch.setattr(parallel, "count", lambda: 2)
        monkeypatch.setattr(parallel, "rank", lambda: self.current)
        monkeypatch.setattr(parallel, "largest", self._most)

    def _most(self, values):
        """Collect what each rank gives; then tell each the largest of both."""
        self.given[self.current] = values
        return [max(pair) for pair in zip(*self.given, strict=True)] if None not in self.given else values

    def step(self, step, asked):
        """Let both ranks end a step, twice, so that the first has heard the second."""
        self.given = [None, None]
        kept = [(clock.next_sync, clock.time_is_up) for clock in self.clocks]
        for _ in range(2):
            found = []
            for rank, clock in enumerate(self.clocks):
                self.current = rank
                clock.next_sync, clock.time_is_up = kept[rank]
                found.append(clock.sync_ranks(step, asked[rank]))
        self.talks += [step] * (self.given != [None, None])
        return found


def test_ranks_talk_twice_a_second_and_act_alike(monkeypatch, now):
    ranks = Ranks(monkeypatch, now)
    asked, heard, saved = [[], []], [], []
    for step in range(1, 801):
        now[0] = step / 10 + 0.001  # ten steps a second
        asked[1] += [SIGTERM] if step == 333 else []
        one, other = ranks.step(step, asked)
        assert one == other
        if one:
            heard.append((step, one))
            asked[1].clear()
        one, other = (clock.checkpoint_is_due(step) for clock in ranks.clocks)
        assert one == other
        if one:
            saved.append(step)
            for clock in ranks.clocks:
                clock.saved()
    gaps = [after - before for before, after in pairwise(ranks.talks[20:])]
    assert set(gaps) <= {4, 5}
    ((step, requests),) = heard
    assert requests == [SIGTERM]
    assert 333 <= step <= 338
    (step,) = saved
    assert 600 <= step <= 605


def test_what_any_rank_was_sent_all_ranks_hear(monkeypatch):
    monkeypatch.setattr(parallel, "largest", lambda values: [max(v, w) for v, w in zip(values, others, strict=True)])
    others = over_values([SIGUSR1], 3.0, 0.0)
    assert over_ranks([SIGINT], 1.0, 2.0) == ([SIGINT, SIGUSR1], [3.0, 2.0])


def over_values(asked, *numbers):
    """What a rank would give, in the order in which `over_ranks` hands it on."""
    return [*(float(each in asked) for each in pace.SIGNALS), *numbers]


@pytest.mark.parametrize("validations", [1, 5, 10, 11, 95, 1000])
def test_pictures_have_their_turn_at_most_so_often(settings, validations, monkeypatch):
    monkeypatch.setattr(pace, "PICTURE_BUDGET", math.inf)
    counts = Pace(changed(settings, steps=10 * validations, validate_every=1.0), 1050)
    budget = PictureBudget(counts)
    drawn = [step for step in range(10, counts.total + 1, 10) if budget.allows(step, 1.0)]
    assert len(drawn) <= pace.PICTURES
    assert len(drawn) >= min(validations, pace.PICTURES) // 2
    assert counts.total not in drawn  # the last are the finished run's


def test_pictures_take_a_small_share_of_the_time(settings, now):
    counts = Pace(changed(settings, steps=1000, validate_every=1.0), 1050)
    budget, drawn = PictureBudget(counts), []
    for step in range(10, 1001, 10):
        now[0] += 10.0
        if budget.allows(step, now[0]):
            with budget.spending():
                now[0] += 1.0
            drawn.append(step)
    assert drawn == [100, 300, 600, 800]  # turns every 100 steps; k seconds of pictures need 250 k of training
