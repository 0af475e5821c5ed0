"""What looks after a run: divergence and the way back, collapse, early stopping, hopeless runs."""

import math

import pytest
import torch

from tests.conftest import TINY, configure
from vae_cli.metrics import Evaluation
from vae_cli.parts import build, load_dataset
from vae_cli.report import Silent
from vae_cli.training import watch as module
from vae_cli.training.assembly import build_objective, build_trainer
from vae_cli.training.watch import Diverged, Watch


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.lines, self.rewound = [], []

    def warn(self, text):
        self.warnings.append(text)

    def line(self, text):
        self.lines.append(text)

    def rewind(self, step):
        self.rewound.append(step)


@pytest.fixture(scope="module")
def parts():
    """Configuration, data and a folder that nothing is written to, for trainers of a small model."""
    config = configure(*TINY, "trainer.steps=1000", "trainer.on_nan=rollback", "trainer.early_stopping=3")
    return config, load_dataset(config)


@pytest.fixture
def trainer(parts, tmp_path):
    config, dataset = parts
    vae, cpu = build(config, dataset.spec), torch.device("cpu")
    return build_trainer(config, vae, build_objective(config, vae, dataset, cpu), dataset, Recorder(), tmp_path)


def evaluation(active, units):
    kl = torch.ones(units)
    return Evaluation(-3.0, -2.0, 1.0, active, kl, ((units, units),), 0.1)


def watching(trainer, settled=0.0, hopeless=None, **settings):
    changed = trainer.watch.settings.model_copy(update=settings)
    return Watch(trainer.state, trainer.pace, changed, settled=settled, reporter=trainer.reporter, hopeless=hopeless)


def run_a_few(trainer, steps):
    indices = trainer._indices()
    for _ in range(steps):
        trainer._update(next(indices))
        trainer.state.step += 1


def test_what_is_not_finite_is_named_with_the_checkpoint_that_is_kept(trainer):
    trainer.watch.refuse_infinite({"elbo": -1.0, "kl": 0.0})
    trainer.state.step = 7
    with pytest.raises(Diverged, match="diverged: kl, loss not finite by step 7; no checkpoint was written yet; lower"):
        trainer.watch.refuse_infinite({"kl": math.nan, "elbo": -1.0, "loss": math.inf})
    trainer.state.saved()
    trainer.state.step = 9
    next(trainer.stepper.vae.parameters()).data[0] = math.inf
    with pytest.raises(Diverged, match="weights not finite by step 9; the checkpoint of step 7 is kept"):
        trainer.watch.refuse_infinite_weights()


def test_skipped_steps_end_a_run_where_none_between_them_was_good(trainer, monkeypatch):
    monkeypatch.setattr(module, "SKIPS", 10)
    trainer.watch.check_skipped(8, all_skipped=True)
    trainer.watch.check_skipped(3, all_skipped=False)
    assert trainer.state.skipped_in_row == 0
    trainer.watch.check_skipped(0, all_skipped=False)
    assert len(trainer.reporter.warnings) == 2
    trainer.watch.check_skipped(5, all_skipped=True)
    with pytest.raises(Diverged, match="loss or gradient of 10 steps in a row"):
        trainer.watch.check_skipped(5, all_skipped=True)


def test_a_run_goes_back_to_what_was_saved_with_other_draws_and_half_the_rate(trainer):
    state, watch = trainer.state, trainer.watch
    trainer.stepper.vae.train()
    run_a_few(trainer, 2)
    trainer.save()
    saved = {name: value.clone() for name, value in trainer.stepper.vae.state_dict().items()}
    rate = trainer.stepper.optimizer.param_groups[0]["lr"]
    for k in range(1, module.ROLLBACKS + 1):
        run_a_few(trainer, 3)
        assert not torch.equal(next(iter(saved.values())), next(iter(trainer.stepper.vae.state_dict().values())))
        draws = torch.get_rng_state()
        watch.roll_back(Diverged("training diverged: kl not finite by step 5; more"))
        assert (state.step, state.rollbacks, trainer.reporter.rewound) == (2, k, [2] * k)
        assert all(torch.equal(saved[name], value) for name, value in trainer.stepper.vae.state_dict().items())
        assert torch.equal(torch.get_rng_state(), draws)
        assert (
            f"kl not finite by step 5: gone back from step 5 to step 2 with half the learning rate ({k} of 3"
            in (trainer.reporter.warnings[-1])
        )
        run_a_few(trainer, 1)
        state.step -= 1
        assert trainer.stepper.optimizer.param_groups[0]["lr"] == pytest.approx(rate * 0.5**k)
    error = Diverged("once more")
    with pytest.raises(Diverged, match="once more"):
        watch.roll_back(error)


def test_a_run_that_may_not_go_back_keeps_no_second_state(trainer):
    watch = watching(trainer, on_nan="stop")
    watch.remember()
    assert watch.good is None
    with pytest.raises(Diverged):
        watch.roll_back(Diverged("diverged"))


@pytest.mark.parametrize(
    ("step", "settled", "active", "units", "warned"),
    [
        (600, 0.0, 3, 8, True),
        (600, 0.0, 4, 8, False),  # half of them are enough
        (499, 0.0, 0, 8, False),  # not half of the run
        (600, 1e9, 0, 8, False),  # the KL weight still rises
        (600, 0.0, 0, 1, False),  # one unit alone
    ],
)
def test_collapse_is_warned_of_once_and_not_too_early(trainer, step, settled, active, units, warned):
    watch = watching(trainer, settled=settled)
    trainer.state.step = step
    for _ in range(2):
        watch.check_validation(evaluation(active, units))
    expected = f"posterior collapse: {active} of {units} latent units are active"
    assert [line.partition(";")[0] for line in trainer.reporter.warnings] == [expected] * warned


def test_early_stopping_waits_for_so_many_validations_without_a_new_best(trainer):
    state, watch, stopped = trainer.state, trainer.watch, []
    for step, score in enumerate([-9.0, -8.0, -8.5, -8.0, -7.0, -8.0, -8.0, -8.0], 1):
        state.step = step
        state.observe(score, epoch=0.1 * step)
        stopped.append(watch.stopped_by)
    assert stopped == [None] * 7 + ["early_stopping"]
    assert (state.best["step"], state.best["score"], state.best["epoch"]) == (5, -7.0, 0.5)
    state.step = trainer.pace.total
    assert watch.stopped_by is None  # it came to its end


def test_a_hopeless_run_is_given_up_before_its_end_alone(trainer):
    told = []

    def hopeless(epoch):
        told.append(epoch)
        return "given up" if epoch > 0.5 * trainer.pace.epochs else None

    watch = watching(trainer, hopeless=hopeless, prune=2)
    trainer.state.step = trainer.pace.total
    watch.check_validation(evaluation(8, 8))
    assert (told, watch.stopped_by) == ([], None)
    trainer.state.step = 100
    watch.check_validation(evaluation(8, 8))
    assert (told, watch.stopped_by) == ([trainer.pace.epoch(100)], None)
    trainer.state.step = 900
    watch.check_validation(evaluation(8, 8))
    assert (trainer.reporter.lines, watch.stopped_by) == (["given up"], "prune")
    assert watching(trainer, prune=None).stopped_by is None  # a run given up goes on without the rule
