"""Numerically hard data and settings: a run trains to finite numbers or is refused in one line; it does not crash."""

import math

import numpy as np
import pytest

from tests.conftest import train
from tests.ordeals import numbers
from vae_cli.system.errors import UserError

LIKELIHOODS = {
    "bernoulli": [], "continuous_bernoulli": [], "discretized_logistic": [], "categorical": [],
    "gaussian": ["likelihood.scale=per_pixel"], "laplace": ["likelihood.scale=per_pixel"],
}  # fmt: skip
SCALES = ["shared", "optimal", "per_pixel", "per_element"]
SHORT = ["model.latent_dim=3", "model.hidden=[16]", "trainer.epochs=30", "trainer.log_likelihood_samples=4"]


def arrays(folder, x, y=None):
    """Settings that train on arrays."""
    np.savez(folder / "x.npz", x=x, **({} if y is None else {"y": y}))
    return ["data=arrays", f"data.path={folder}/x.npz", *SHORT]


def trains(folder, *overrides):
    """Train and assert that every number is finite."""
    found = train(folder / "run", *overrides)
    assert numbers(folder / "run"), found
    known = {key: value for key, value in numbers(folder / "run").items() if not key.endswith("_stderr")}
    assert all(value is not None and math.isfinite(value) for value in known.values()), known
    return found


@pytest.mark.parametrize("level", [0, 7])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_constant_pixels(tmp_path, likelihood, level):
    """A learned scale falls towards 0 and logits grow without end, at a high learning rate."""
    x = np.full((64, 5, 5), level, np.uint8)
    trains(tmp_path, *arrays(tmp_path, x), f"likelihood={likelihood}", *LIKELIHOODS[likelihood], "optimizer.lr=0.1")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
@pytest.mark.parametrize("value", [0.0, 1e-30, -3.0, 1e30])
def test_constant_real_values(tmp_path, likelihood, scale, value):
    x = np.full((64, 4), value, np.float32)
    x[:32, 0] += 1.0  # else there is nothing that varies, which is no data of real values
    trains(tmp_path, *arrays(tmp_path, x), f"likelihood={likelihood}", f"likelihood.scale={scale}", "optimizer.lr=0.1")


@pytest.mark.parametrize("likelihood", ["gaussian", "laplace"])
@pytest.mark.parametrize("scale", ["per_pixel", "per_element"])
def test_a_table_in_units_of_its_own_trains_as_a_standardised_one(tmp_path, likelihood, scale):
    """Means of thousands and standard deviations from 1 to 1,000: steps fit the data, whatever these count in."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 4)) + 0.3 * rng.normal(size=(200, 4))
    settings = arrays(tmp_path, x * [1.0, 10.0, 100.0, 1000.0] + [0.0, -500.0, 3000.0, 9000.0])
    settings += [f"likelihood={likelihood}", f"likelihood.scale={scale}", "likelihood.min_scale=1e-6"]
    own, standardised = (
        train(tmp_path / f"{way}", *settings, f"data.standardize={way}")["test/elbo"] for way in ("false", "true")
    )
    assert own == pytest.approx(standardised, abs=0.1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_example(tmp_path, likelihood):
    x = np.arange(25, dtype=np.uint8).reshape(1, 5, 5)
    settings = [*arrays(tmp_path, x), f"likelihood={likelihood}", *LIKELIHOODS[likelihood]]
    trains(tmp_path, *settings, "data.valid=0", "data.test=0")
    with pytest.raises(UserError, match=r"data\.valid=0\.1 and data\.test=.*: would leave no training examples of 1$"):
        train(tmp_path / "other", *settings)


OBJECTIVES = ["elbo", "iwae", "beta_tc", "mmd", "factor"]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("batch", [1, 100_000])
def test_a_batch_of_one_and_one_larger_than_the_data(tmp_path, objective, batch):
    settings = ["data=synthetic", "data.n=12", "data.shape=[5,5]", *SHORT, "trainer.epochs=3"]
    trains(tmp_path, *settings, f"objective={objective}", f"trainer.batch_size={batch}")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_last_batch_of_one(tmp_path, likelihood):
    """Evaluation takes every example, in hundreds here, and the last of them stands alone; training lets it wait."""
    settings = ["data=synthetic", "data.n=223", "data.valid=101", "data.test=101", "data.shape=[5,5]", *SHORT]
    settings += ["trainer.batch_size=10", "trainer.epochs=3", "trainer.final_samples=10"]
    assert trains(tmp_path, *settings, f"likelihood={likelihood}")["steps"] == 6


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "gaussian", "laplace"])
def test_a_hundred_thousand_dimensions(tmp_path, likelihood):
    x = np.random.default_rng(0).integers(0, 256, (20, 100_000), dtype=np.uint8)
    settings = [*arrays(tmp_path, x), f"likelihood={likelihood}", *LIKELIHOODS[likelihood]]
    trains(tmp_path, *settings, "model.hidden=[4]", "trainer.steps=2", "trainer.final_samples=1")


@pytest.mark.parametrize("likelihood", ["discretized_logistic", "categorical"])
def test_ten_thousand_dimensions_of_levels(tmp_path, likelihood):
    x = np.random.default_rng(0).integers(0, 4, (20, 100, 100)).astype(np.int16)
    settings = [*arrays(tmp_path, x), f"likelihood={likelihood}", "model.hidden=[4]"]
    trains(tmp_path, *settings, "trainer.steps=2", "trainer.final_samples=1")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_steps_far_too_long_end_in_numbers_or_in_a_line(tmp_path, likelihood):
    settings = ["data=synthetic", "data.n=60", "data.shape=[5,5]", *SHORT, f"likelihood={likelihood}"]
    try:
        trains(tmp_path, *settings, *LIKELIHOODS[likelihood], "optimizer=sgd", "optimizer.lr=1e3")
    except UserError as error:
        line = str(error)
    else:
        line = "training diverged"
    assert line.startswith("training diverged")
    assert "\n" not in line
