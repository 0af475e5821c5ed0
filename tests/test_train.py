"""Properties of whole runs, on small data and in this process."""

import json
import math
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import TINY, configure, train
from vae_cli import parts
from vae_cli.batch import Batch
from vae_cli.data import Spec
from vae_cli.metrics import bits_per_dim, enough_draws, evaluate
from vae_cli.report import Reporter
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError
from vae_cli.system.randomness import seed_everything
from vae_cli.training import pace
from vae_cli.training.effort import affordable

SHORT = [*TINY, "trainer.steps=24", "trainer.log_every=4", "trainer.checkpoint_every=8", "trainer.batch_size=32"]
TAGS = {
    "train/elbo", "train/reconstruction", "train/kl", "train/kl_weight", "train/loss", "train/learning_rate",
    "train/grad_norm", "train/examples_per_second", "valid/elbo", "valid/reconstruction", "valid/kl",
    "valid/active_units",
}  # fmt: skip


def weights(folder, name="last"):
    return checkpoint.load(folder / "checkpoints" / f"{name}.pt")["model"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def numbers(summary):
    return {key: value for key, value in summary.items() if "/" in key}


def test_a_run_leaves_what_it_promises(tmp_path):
    summary = train(tmp_path, *SHORT, "conditional=label", drawn=True)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    figures = ("reconstructions", "samples", "class_samples", "elbo", "kl_by_dimension")
    assert {f"figures/{name}.png" for name in figures} <= written
    assert {"checkpoints/last.pt", "checkpoints/best.pt", "metrics.jsonl", "summary.json", "train.log"} <= written
    assert not [name for name in written if "partial" in name]
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert numbers(stored) == numbers(summary)
    for split in ("train", "valid", "test"):
        assert stored[f"{split}/elbo"] == pytest.approx(stored[f"{split}/reconstruction"] - stored[f"{split}/kl"])
    assert stored["test/bits_per_dim"] == pytest.approx(-stored["test/elbo"] / (144 * math.log(2)))
    assert {"parameters", "train_seconds", "examples_per_second", "epochs", "steps", "test/active_units"} <= set(stored)
    assert {key for line in lines(tmp_path) for key in line} == TAGS | {"step", "epoch"}
    assert [line["step"] for line in lines(tmp_path) if "train/elbo" in line] == [4, 8, 12, 16, 20, 24]


def test_tensorboard_holds_the_scalars_pictures_histograms_and_settings_in_one_run(tmp_path):
    train(tmp_path, *SHORT)
    assert len(list((tmp_path / "tensorboard").rglob("events*"))) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= TAGS | {"test/elbo"}
    assert set(tags["images"]) == {"reconstructions", "samples", "traversals"}
    assert tags["histograms"] == ["valid/kl_by_dimension"]
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert [event.step for event in events.Scalars("train/elbo")] == [4, 8, 12, 16, 20, 24]


def test_averages_of_gradients_that_have_become_zero_cost_no_more_than_others(tmp_path, monkeypatch):
    """A number that is not normal would stay so: 0.9 of the least of them is rounded to itself."""
    from vae_cli.optimizer import Adam

    step = Adam.step

    def fading(self, *arguments):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad.mul_(0.0 if self.state[parameter] else 1e-30)
        return step(self, *arguments)

    fading.hooked = True
    monkeypatch.setattr(Adam, "step", fading)
    train(tmp_path, *TINY, "trainer.steps=400")
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")["optimizer"]["state"]
    averages = torch.cat([each["exp_avg"].flatten().abs() for each in state.values()])
    assert not ((averages > 0) & (averages < torch.finfo(torch.float32).tiny)).any()
    assert torch.full((), 1e-30) * torch.full((), 1e-10) > 0  # elsewhere all is as it was


def test_one_seed_gives_equal_bits_and_another_does_not(tmp_path):
    one, again = (train(tmp_path / name, *SHORT) for name in ("one", "again"))
    assert numbers(one) == numbers(again)
    assert equal(weights(tmp_path / "one"), weights(tmp_path / "again"))
    zero, other = (train(tmp_path / str(seed), *SHORT, f"seed={seed}") for seed in (0, 2))
    assert len({summary["test/elbo"] for summary in (one, zero, other)}) == 3


def test_watching_does_not_change_what_is_trained(tmp_path, monkeypatch):
    """Validation, logging, pictures and checkpoints draw no random number of training."""
    monkeypatch.setattr(pace, "PICTURE_BUDGET", math.inf)
    with patch.object(Reporter, "pictures", autospec=True, side_effect=Reporter.pictures) as drawn:
        train(tmp_path / "often", *SHORT, "trainer.validate_every=0.2", "trainer.log_every=1")
    assert drawn.call_count > 5
    train(tmp_path / "never", *SHORT, "trainer.validate_every=100", "trainer.log_every=1000")
    assert equal(weights(tmp_path / "often"), weights(tmp_path / "never"))


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["trainer.ema=0.9", "lr_schedule=cosine", "kl=linear", "optimizer=adamw"],
        ["objective=factor", "prior=vamp", "prior.components=4", "trainer.ema=0.9"],
        ["posterior=flow", "prior=mixture", "objective=iwae", "objective.samples=3"],
    ],
)
def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path, extra):
    whole = train(tmp_path / "whole", *SHORT, *extra)
    train(tmp_path / "parts", *SHORT, *extra)
    halfway = _stopped_at(tmp_path / "parts", 16, [*SHORT, *extra])
    assert halfway["step"] == 16
    parts = train(tmp_path / "parts", *SHORT, *extra, resume=True)
    assert numbers(parts) == numbers(whole)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    untimed = [{k: v for k, v in line.items() if "per_second" not in k} for line in lines(tmp_path / "whole")]
    assert [{k: v for k, v in line.items() if "per_second" not in k} for line in lines(tmp_path / "parts")] == untimed


def _stopped_at(folder, step, overrides):
    """Train again from the start, but keep the checkpoints that stood at a step, as if killed just after it."""
    for name in ("last.pt", "best.pt"):
        (folder / "checkpoints" / name).unlink()
    original = checkpoint.save
    try:
        checkpoint.save = lambda state, path, **kw: original(state, path, **kw) if state["step"] <= step else None
        train(folder, *overrides)
    finally:
        checkpoint.save = original
    return checkpoint.load(folder / "checkpoints" / "last.pt")


def test_resume_with_more_epochs_goes_on(tmp_path):
    train(tmp_path, *SHORT)
    summary = train(tmp_path, *SHORT, "trainer.steps=32", resume=True)
    assert summary["steps"] == 32
    steps = [line["step"] for line in lines(tmp_path) if "train/elbo" in line]
    assert steps == [4, 8, 12, 16, 20, 24, 28, 32]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("train/elbo")] == steps


def test_checkpoints_hold_state_alone(tmp_path):
    train(tmp_path, *SHORT)
    for name in ("last", "best"):
        state = torch.load(tmp_path / "checkpoints" / f"{name}.pt", weights_only=True)
        assert state["config"]["model"] == {
            "_target_": "vae_cli.model.mlp.MLP", "latent_dim": 4, "hidden": [400], "activation": "relu",
            "bias_from_data": False,
        }  # fmt: skip
        assert state["config"]["optimizer"]["lr"] == 1e-3
        assert state["spec"]["shape"] == [12, 12]
        assert state["sizes"] == {"train": 160, "valid": 20, "test": 20}


def test_the_best_weights_are_those_of_the_best_validation(tmp_path):
    summary = train(tmp_path, *SHORT, "optimizer.lr=0.05", "trainer.validate_every=0.2")
    best = max(line["valid/elbo"] for line in lines(tmp_path) if "valid/elbo" in line)
    assert summary["valid/elbo"] == best
    assert checkpoint.load(tmp_path / "checkpoints" / "best.pt")["score"] == best


def test_validation_is_the_plain_elbo_whatever_is_trained(tmp_path):
    train(tmp_path, *SHORT, "kl.weight=20", "kl.free_bits=3")
    for line in lines(tmp_path):
        for split in ("train", "valid"):
            if f"{split}/elbo" in line:
                plain = line[f"{split}/reconstruction"] - line[f"{split}/kl"]
                assert line[f"{split}/elbo"] == pytest.approx(plain, rel=1e-5)
    assert all(line["train/loss"] > -line["train/elbo"] for line in lines(tmp_path) if "train/loss" in line)


def test_an_evaluation_does_not_depend_on_its_batch_size(tmp_path):
    """The last short batch weighs no more than its examples: with z at its mean no noise is left to differ."""
    config = configure(*TINY, "model=linear", "likelihood=gaussian", "likelihood.scale=1.0")
    dataset = parts.load_dataset(config)
    vae = parts.build(config, dataset.spec)
    vae.latent.posterior.head.bias.data[4:] = -30.0  # σ = 0
    valid = dataset.resident("test", torch.device("cpu"))
    results = [evaluate(vae, valid, batch_size=size) for size in (1000, 7, 3)]
    for other in results[1:]:
        assert other.elbo == pytest.approx(results[0].elbo, rel=1e-6)
        assert other.active_units == results[0].active_units


def test_active_units_are_those_whose_mean_moves(tmp_path):
    config = configure(*TINY, "model=linear", "data.limit=150")
    dataset = parts.load_dataset(config)
    vae = parts.build(config, dataset.spec)
    with torch.no_grad():
        vae.latent.posterior.head.weight.zero_()
        vae.latent.posterior.head.weight[:2] = 0.5  # of four means, two move with x
    data = dataset.resident("train", torch.device("cpu"))
    result = evaluate(vae, data)
    assert result.active_units == 2
    every = Batch(torch.cat([batch.x for batch in data.batches(64)]))
    assert vae.encode(every).mean.var(0)[:2].min() > 0.01


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.ema=0.99"],
        ["trainer.grad_clip=1.0"],
        ["trainer.precision=bf16"],
        ["trainer.deterministic=true"],
        ["objective.samples=5"],
        ["lr_schedule=plateau"],
        ["data.valid=0"],
        ["data.test=0"],
        ["data.valid=0", "data.test=0"],
        ["trainer.batch_size=100000"],
        ["data.limit_train=1"],
        ["data.shape=[6]"],
        ["conditional=label", "conditional.embedding=3", "model=conv"],
        ["likelihood=gaussian", "likelihood.scale=optimal", "trainer.ema=0.9"],
        ["likelihood=gaussian", "data.dequantize=true"],
        ["trainer.final=last"],
    ],
    ids=" ".join,
)
def test_settings_of_the_loop_run(tmp_path, overrides):
    summary = train(tmp_path, *TINY, *overrides)
    assert all(math.isfinite(value) for value in numbers(summary).values())
    assert not torch.are_deterministic_algorithms_enabled() or "trainer.deterministic=true" in overrides
    torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "part",
    [
        "kl=constant",
        "prior=vamp",
        "prior=flow",
        "posterior=full_gaussian",
        "posterior=flow",
        "objective=beta_tc",
        "objective=factor",
        "model=ladder",
    ],
)
def test_a_compiled_step_gives_the_same_losses(tmp_path, part):
    train(tmp_path / "plain", *SHORT, part)
    train(tmp_path / "compiled", *SHORT, part, "trainer.compile=true")
    plain, compiled = (
        [line["train/elbo"] for line in lines(tmp_path / name) if "train/elbo" in line]
        for name in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
    assert not [key for key in weights(tmp_path / "compiled") if "_orig_mod" in key]


def test_gradients_are_clipped(tmp_path):
    train(tmp_path, *SHORT, "trainer.grad_clip=1e-9", "optimizer=sgd", "optimizer.momentum=0")
    spec = parts.load_dataset(configure(*SHORT)).spec
    seed_everything(1)
    fresh = parts.build(configure(*SHORT), spec).state_dict()
    assert all(torch.allclose(fresh[key], value, atol=1e-7) for key, value in weights(tmp_path).items())


def test_training_stops_when_patience_is_over(tmp_path):
    settings = ["optimizer.lr=1e-12", "trainer.validate_every=0.2", "trainer.early_stopping=3", "trainer.steps=500"]
    summary = train(tmp_path, *SHORT, *settings)
    assert summary["steps"] < 100


def test_the_average_of_the_weights_is_what_is_evaluated(tmp_path):
    summary = train(tmp_path, *SHORT, "trainer.ema=0.5", "trainer.final=last", "optimizer.lr=0.01")
    state = checkpoint.load(tmp_path / "checkpoints" / "last.pt")
    assert not equal(state["model"], state["averaged"])
    config = configure(*SHORT)
    dataset = parts.load_dataset(config)
    vae = parts.build(config, dataset.spec)
    vae.load_state_dict(state["averaged"])
    test = dataset.resident("test", torch.device("cpu"))
    result = evaluate(vae, test, samples=enough_draws(vae, test))
    assert result.elbo == pytest.approx(summary["test/elbo"], rel=1e-6)


def test_a_broken_checkpoint_is_named(tmp_path):
    train(tmp_path, *TINY)
    path = tmp_path / "checkpoints" / "last.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"last\.pt: not a whole checkpoint"):
        train(tmp_path, *TINY, resume=True)


def test_a_diverged_run_says_which_term_and_when(tmp_path):
    with pytest.raises(
        UserError,
        match=r"training diverged: .* not finite by step \d+; no checkpoint was written yet; lower optimizer\.lr",
    ):
        train(tmp_path, *SHORT, "optimizer=sgd", "optimizer.lr=1e6", "likelihood=gaussian", "trainer.steps=200")


def test_warnings_name_a_remedy_and_are_kept(tmp_path):
    train(tmp_path / "grey", *TINY, "data.binarize=none")
    train(tmp_path / "dead", *TINY, "trainer.steps=320", "kl.weight=1000", "model.latent_dim=6")
    train(tmp_path / "short", *TINY, "kl=linear")
    train(tmp_path / "density", *TINY, "likelihood=gaussian", "data.binarize=threshold")
    dead = [*TINY, "kl.weight=1000", "model.latent_dim=6", "trainer.steps=321"]
    assert train(tmp_path / "dead", *dead, resume=True)["steps"] == 321
    names = ("grey", "dead", "short", "density")
    found = {name: json.loads((tmp_path / name / "summary.json").read_text())["warnings"] for name in names}
    assert any("a cross-entropy, not a log-likelihood" in line for line in found["grey"])
    assert any("posterior collapse: 0 of 6" in line and "kl.free_bits" in line for line in found["dead"])
    assert any("a density on discrete values can grow without bound" in line for line in found["density"])
    assert any("the KL schedule takes 10 epochs to settle" in line for line in found["short"])


def test_bits_are_told_only_where_they_mean_something():
    def bits(*overrides):
        config = configure("data=synthetic", "data.n=50", *overrides)
        dataset = parts.load_dataset(config)
        return bits_per_dim(-100.0, dataset.spec, parts.build(config, dataset.spec).likelihood)

    nats = 100.0 / (784 * math.log(2))
    assert bits() == pytest.approx(nats)
    assert bits("likelihood=categorical") == pytest.approx(nats)
    assert bits("likelihood=gaussian", "data.dequantize=true") == pytest.approx(nats + 8)
    assert bits("data.binarize=none") is None  # a cross-entropy
    assert bits("likelihood=gaussian") is None
    assert bits("likelihood=continuous_bernoulli", "data.binarize=static") is None


def test_a_run_goes_on_only_with_the_data_it_began_with(tmp_path):
    train(tmp_path, *TINY)
    with pytest.raises(UserError, match=r"the data changed since the run began \(train: 160, now 150\)"):
        train(tmp_path, *TINY, "data.limit=150", resume=True)
    with pytest.raises(UserError, match=r"the data changed since the run began \(shape: \[12, 12\], now \[8, 8\]\)"):
        train(tmp_path, *TINY, "data.shape=[8,8]", resume=True)


def test_killed_between_the_writes_of_best_and_last_a_run_still_ends_the_same(tmp_path):
    settings = [*SHORT, "trainer.validate_every=0.2", "trainer.early_stopping=4", "trainer.checkpoint_every=8"]
    whole = train(tmp_path / "whole", *settings)
    original, folder = checkpoint.save, tmp_path / "parts"

    def save(state, path, **_):
        if state["step"] <= 8 or (path.name == "best.pt" and state["step"] <= 16):
            original(state, path)

    try:
        checkpoint.save = save
        train(folder, *settings)
    finally:
        checkpoint.save = original
    last, best = (checkpoint.load(folder / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    assert best["step"] > last["step"]
    assert numbers(train(folder, *settings, resume=True)) == numbers(whole)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_tables_of_any_scale_train(tmp_path, scale):
    rng = np.random.default_rng(0)
    x = scale * (rng.normal(size=(300, 2)) @ rng.normal(size=(2, 5)) + 3.0)
    x[:, 4] = 7.0 * scale  # one that never changes
    np.save(tmp_path / "table.npy", x)
    settings = ["data=arrays", f"data.path={tmp_path}/table.npy", "likelihood=gaussian", "model.latent_dim=3"]
    settings += ["data.standardize=true", "trainer.epochs=40"]
    summary = train(tmp_path / "run", *settings)
    in_own_units = summary["test/elbo"] + 4 * math.log(scale)  # the constant column keeps its unit
    assert -7.0 < in_own_units + 2.0 < 3.0  # of four normals of those widths alone it is about -8
    train_x = parts.load_dataset(configure(*settings)).train.x
    torch.testing.assert_close(train_x[:, :4].mean(0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(train_x[:, :4].std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    assert train_x[:, 4].abs().max() < 1e-3


def test_standardising_is_for_real_values_alone(tmp_path):
    with pytest.raises(UserError, match=r"data\.standardize=true: has no effect on grey levels"):
        train(tmp_path, *TINY, "data.standardize=true")


def test_without_validation_examples_a_run_still_shows_what_it_does(tmp_path, capsys):
    train(tmp_path, *SHORT, "data.valid=0", "trainer.validate_every=1")
    assert "train ELBO" in capsys.readouterr().out
    tags = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tags()
    assert tags["histograms"] == ["train/kl_by_dimension"]
    assert set(tags["images"]) == {"reconstructions", "samples", "traversals"}
    assert not (tmp_path / "checkpoints" / "best.pt").exists()


def test_the_debug_overlays_do_what_they_say(tmp_path):
    fast = train(tmp_path / "fast", "debug=fast")
    assert fast["steps"] == 2
    learned = train(tmp_path / "overfit", "debug=overfit", "trainer.epochs=300")
    assert learned["train/elbo"] > learned["test/elbo"] + 3


def effort(shape, sizes, steps, **settings):
    """What the final numbers of a run on data of that shape rest on."""
    config = configure(*[f"trainer.{key}={value}" for key, value in settings.items()])
    dataset = SimpleNamespace(spec=Spec(shape, 256, 0.0, 1.0), sizes=sizes, train=range(sizes["train"]))
    return affordable(config.trainer, dataset, steps * 128)


def test_final_numbers_cost_no_more_than_training():
    """256² pictures: evaluation took most of a short run's time."""
    mnist = effort((28, 28), {"train": 54_000, "valid": 6000, "test": 10_000}, 1)
    assert (mnist.draws, mnist.train, mnist.weighed) == (8, 10_000, 1000)
    photographs = {"train": 960, "valid": 120, "test": 120}
    short, long = effort((3, 256, 256), photographs, 5), effort((3, 256, 256), photographs, 10_000)
    assert (short.draws, short.train, short.weighed) == (1, 960, 10)
    assert (long.draws, long.train, long.weighed) == (8, 960, 1000)
    asked = effort((3, 256, 256), photographs, 5, log_likelihood_examples="null")
    assert asked.weighed is None  # all, as was asked for
