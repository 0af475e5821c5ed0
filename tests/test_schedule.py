import math
from itertools import pairwise

import pytest

from tests.build import part

RISING = ("linear", "cosine", "sigmoid")


@pytest.mark.parametrize("name", RISING)
def test_a_rise_starts_at_zero_ends_at_the_weight_and_never_falls(name):
    kl = part("kl", name, warmup=4.0, weight=3.0)
    weights = [kl.weight(t / 10) for t in range(81)]
    assert weights[0] == pytest.approx(0.0, abs=1e-12)
    assert weights[20] == pytest.approx(1.5)
    assert weights[40:] == pytest.approx([3.0] * 41)
    assert all(a <= b + 1e-12 for a, b in pairwise(weights))
    assert kl.settled == 4.0


@pytest.mark.parametrize("name", RISING)
def test_no_warmup_is_the_constant(name):
    assert part("kl", name, warmup=0.0, weight=2.0).weight(0.0) == pytest.approx(2.0)


def test_constant_is_beta_exactly():
    assert {part("kl", "constant", weight=4.0).weight(t) for t in (0, 0.5, 1000)} == {4.0}


def test_cyclical_repeats_and_ends_at_the_weight():
    kl = part("kl", "cyclical", period=10.0, ratio=0.5, cycles=3, weight=2.0)
    for cycle in range(3):
        start = 10.0 * cycle
        assert kl.weight(start) == 0.0
        assert kl.weight(start + 2.5) == pytest.approx(1.0)
        assert kl.weight(start + 5.0) == pytest.approx(2.0)
        assert kl.weight(start + 9.9) == pytest.approx(2.0)
    assert kl.weight(30.0) == 2.0
    assert kl.settled == 30.0


@pytest.mark.parametrize("period", [0.1, 0.3, 0.7, 1 / 3, 1.1])
@pytest.mark.parametrize("steps", [10, 30, 7])
def test_each_cycle_starts_at_zero_and_the_last_one_ends_whatever_the_fraction(period, steps):
    """An epoch is a count of steps divided by those of an epoch: neither it nor the period is exact in binary."""
    kl = part("kl", "cyclical", period=period, ratio=0.5, cycles=5, weight=2.0)
    starts = [k for k in range(5 * steps) if abs(k / steps / period - round(k / steps / period)) < 1e-9]
    assert all(kl.weight(k / steps) < 1e-9 for k in starts if k / steps < kl.settled - 1e-9)
    assert [kl.weight(period * cycle) for cycle in range(5)] == pytest.approx([0.0] * 5, abs=1e-12)
    assert kl.weight(5 * period) == kl.weight(sum([period] * 5)) == 2.0


def test_a_staircase_falls_at_its_fractions():
    step = part("lr_schedule", "step", every=0.1, factor=0.5)
    assert [step.factor(k / 10) for k in range(8)] == [0.5**k for k in range(8)]


def test_capacity_rises_while_the_weight_stays():
    kl = part("kl", "capacity", capacity=20.0, warmup=10.0, weight=50.0)
    assert [kl.target(t) for t in (0.0, 5.0, 10.0, 99.0)] == [0.0, 10.0, 20.0, 20.0]
    assert {kl.weight(t) for t in (0.0, 5.0, 99.0)} == {50.0}
    assert part("kl", "constant").target(3.0) is None


def test_learning_rates():
    cosine = part("lr_schedule", "cosine", final=0.1, warmup=2.0, epochs=10.0)
    assert cosine.factor(1.0) == pytest.approx(0.5)
    assert cosine.factor(2.0) == pytest.approx(1.0)
    assert cosine.factor(6.0) == pytest.approx(0.55)
    assert cosine.factor(10.0) == pytest.approx(0.1)
    step = part("lr_schedule", "step", every=3.0, factor=0.1)
    assert [step.factor(t) for t in (0.0, 2.9, 3.0, 6.5)] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert part("lr_schedule", "warmup", warmup=4.0).factor(1.0) == 0.25
    assert part("lr_schedule", "constant").factor(7.0) == 1.0


def test_plateau_falls_after_patience_and_goes_on_from_a_checkpoint():
    plateau = part("lr_schedule", "plateau", patience=2, factor=0.5, min=0.2)
    for elbo in (-10.0, -9.0, -9.0):
        plateau.observe(elbo)
    assert plateau.factor(0.0) == 1.0
    again = part("lr_schedule", "plateau", patience=2, factor=0.5, min=0.2)
    again.load_state_dict(plateau.state_dict())
    for each in (plateau, again):
        each.observe(-9.5)
        assert each.factor(0.0) == 0.5
        for _ in range(9):
            each.observe(-9.5)
        assert each.factor(0.0) == 0.2
    assert plateau.best == -9.0
    assert math.isfinite(plateau.best)


def test_stages_are_those_of_burda_et_al_at_their_length_and_scale_with_the_run():
    for epochs in (3280.0, 41.0):
        stages = part("lr_schedule", "stages", stages=8, growth=3.0, final=0.1, epochs=epochs)
        ends = [sum(3**i for i in range(k + 1)) / 3280 * epochs for k in range(8)]
        for stage, end in enumerate(ends):
            assert stages.factor(end - 1e-6 * epochs) == pytest.approx(10 ** (-stage / 7))
        assert stages.factor(epochs) == pytest.approx(0.1)
    assert part("lr_schedule", "stages", stages=1, epochs=5.0).factor(3.0) == 1.0
