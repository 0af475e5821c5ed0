"""Missing values (data.missing=observed): the model learns from what is there, and fills in what is not."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import vae_cli
from tests.conftest import ROOT, configure, train
from vae_cli import metrics, parts
from vae_cli.batch import Batch
from vae_cli.commands.evaluate import evaluate
from vae_cli.commands.export import export
from vae_cli.commands.generate.app import generate, validate
from vae_cli.commands.generate.imputation import WeightedMean
from vae_cli.config import PATHS, validate_evaluate
from vae_cli.config.check import check
from vae_cli.config.commands import Export
from vae_cli.config.words import CONF
from vae_cli.objective import Penalty
from vae_cli.report import pictures
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError

D, L = 6, 2
LINEAR = ["model=linear", "likelihood=gaussian", f"model.latent_dim={L}"]
SHORT = ["trainer.steps=12", "trainer.log_likelihood_samples=8", "data.missing=observed", "model.hidden=[16]"]


# Factor analysis of what is observed, by EM, in float64: x = W z + b + noise of variances psi.


def posteriors(x, w, b, psi):
    """Return precisions [N, L, L] and means [N, L] of p(z|observed of x)."""
    known = ~np.isnan(x)
    centred = np.where(known, x - b, 0.0)
    precision = np.eye(w.shape[1]) + np.einsum("nd,di,dj->nij", known / psi, w, w)
    return precision, np.linalg.solve(precision, (centred / psi @ w)[..., None])[..., 0]


def exact_log_likelihood(x, w, b, psi):
    """Return log p(observed of x) [N], nats."""
    known = ~np.isnan(x)
    centred = np.where(known, x - b, 0.0)
    precision, mean = posteriors(x, w, b, psi)
    squares = (centred**2 / psi).sum(1) - ((centred / psi @ w) * mean).sum(1)
    return -0.5 * ((known * np.log(2.0 * np.pi * psi)).sum(1) + np.linalg.slogdet(precision)[1] + squares)


def fitted(x, *, shared, steps=500):
    """Return the w, b and psi of highest likelihood of what is observed; psi is one number where `shared`."""
    known, n = ~np.isnan(x), len(x)
    full = np.where(known, x, 0.0)
    w, b, psi = np.random.default_rng(0).normal(size=(x.shape[1], L)), np.nanmean(x, 0), np.ones(x.shape[1])
    for _ in range(steps):
        precision, mean = posteriors(x, w, b, psi)
        z = np.concatenate([mean, np.ones((n, 1))], 1)
        second = z[:, :, None] * z[:, None]
        second[:, :L, :L] += np.linalg.inv(precision)
        both = np.linalg.solve(np.einsum("nd,nij->dij", known, second), np.einsum("nd,ni->di", full, z)[..., None])[
            ..., 0
        ]
        w, b = both[:, :L], both[:, L]
        errors, counts = (full**2).sum(0) - (both * np.einsum("nd,ni->di", full, z)).sum(1), known.sum(0)
        psi = np.full(x.shape[1], errors.sum() / counts.sum()) if shared else errors / counts
    return w, b, psi


def parameters(model):
    """Return w, b and psi of a linear Gaussian run, in the data's own units."""
    readout, spec = model.vae.model.readout, model.spec
    std, mean = np.array(spec.std), np.array(spec.mean)
    scale = model.vae.likelihood._log_scale().exp().double().numpy() * std
    return readout.weight.double().numpy() * std[:, None], readout.bias.double().numpy() * std + mean, scale**2


@pytest.fixture(scope="module")
def table():
    """[1200, 6] of a factor model, 30 % of the entries NaN at random, and all of it."""
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(1200, D)) * np.linspace(0.4, 0.9, D)
    whole = 3.0 + 2.0 * rng.normal(size=(1200, L)) @ rng.normal(size=(L, D)) + noise
    missing = rng.random(whole.shape) < 0.3
    missing[missing.all(1), 0] = False
    return np.where(missing, np.nan, whole).astype("float32"), whole.astype("float32")


def finished(folder, *overrides, drawn=False):
    """Train a run folder as vae-train leaves it, and return it."""
    train(folder, *overrides, drawn=drawn)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*overrides).plain))
    return folder


@pytest.fixture(scope="module")
def source(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "table.npz"
    np.savez(path, x=table[0], features=np.array([f"length {k}" for k in range(D)]))
    return ["data=arrays", f"data.path={path}"]


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
    """A run of a user who wants the likelihood that factor analysis reaches."""
    return finished(
        tmp_path_factory.mktemp("runs") / "exact",
        *source, *LINEAR, "data.missing=observed", "likelihood.scale=per_element", "model.hidden=[64]",
        "posterior=full_gaussian", "objective=iwae", "objective.samples=5", "trainer.epochs=60", "optimizer.lr=0.01",
        "lr_schedule=cosine", "data.test=0", "data.valid=0", "trainer.log_likelihood_samples=0",
    )  # fmt: skip


def command_settings(name, **changes):
    """Return the settings of a command as its YAML has them, but for some changes."""
    found = yaml.safe_load(Path(CONF, f"{name}.yaml").read_text())
    kept = {key: value for key, value in found.items() if key not in ("hydra", "defaults")}
    return {**kept, "data": dict.fromkeys(PATHS), "device": "cpu", **changes}


def made(folder, task, output, **changes):
    """Run a task of vae-generate into a folder, and return the paths that it wrote by their names."""
    own = yaml.safe_load(Path(CONF, "task", f"{task}.yaml").read_text())
    given = command_settings("generate", run=str(folder), output=str(output), task={**own, **changes})
    return {path.name: path for path in generate(validate(given))}


def imputed(folder, output, **changes):
    return dict(np.load(made(folder, "impute", output, **changes)["imputed.npz"]))


def conditional_means(x, w, b, psi):
    """Return E[x|observed of x], [N, D]."""
    return np.where(np.isnan(x), posteriors(x, w, b, psi)[1] @ w.T + b, x)


def monte_carlo_errors(x, draws, w, b, psi):
    """Return the standard errors [N, D] of means of so many effective draws [N] of z from p(z|observed of x)."""
    covariance = np.linalg.inv(posteriors(x, w, b, psi)[0])
    return np.sqrt(np.einsum("di,nij,dj->nd", w, covariance, w) / draws[:, None])


def test_a_linear_model_reaches_factor_analysis(run, table):
    model = vae_cli.load(run, device="cpu")
    best = exact_log_likelihood(table[0], *fitted(table[0].astype("float64"), shared=False)).mean()
    own = exact_log_likelihood(table[0], *parameters(model)).mean()
    found = float(model.log_likelihood(table[0], samples=300).double().mean())
    assert abs(found - own) < 0.01  # importance sampling gives what the model's parameters do in closed form
    assert best - 0.1 < found < best + 0.01


def test_it_reaches_probabilistic_pca_by_the_elbo_alone(source, table, tmp_path):
    folder = finished(
        tmp_path / "ppca", *source, *LINEAR, "data.missing=observed", "likelihood.scale=shared",
        "data.standardize=false", "model.hidden=[64]", "posterior=full_gaussian", "trainer.epochs=60",
        "optimizer.lr=0.01", "lr_schedule=cosine", "data.test=0", "data.valid=0", "trainer.log_likelihood_samples=0",
    )  # fmt: skip
    best = exact_log_likelihood(table[0], *fitted(table[0].astype("float64"), shared=True)).mean()
    found = float(vae_cli.load(folder, device="cpu").log_likelihood(table[0], samples=300).double().mean())
    assert best - 0.1 < found < best + 0.01


def test_an_example_that_is_whole_costs_what_it_does_without_a_mask():
    torch.manual_seed(0)
    config = configure("data=synthetic", "model=mlp", "likelihood=gaussian", "data.dequantize=true")
    dataset = parts.load_dataset(config)
    vae = parts.build(config, dataset.spec)
    batch = dataset.resident("train", torch.device("cpu")).batch(slice(0, 5))
    assert batch.known is None
    p = vae.decode(torch.zeros(5, vae.latent_dim))
    all_known = Batch(batch.x, batch.y, torch.ones_like(batch.x, dtype=torch.bool))
    torch.testing.assert_close(vae.log_prob(p, batch), vae.log_prob(p, all_known))


@pytest.mark.parametrize("scale", ["shared", "per_element", "per_pixel", "optimal"])
def test_what_is_written_in_place_of_a_missing_value_has_no_influence(source, scale):
    config = configure(*source, "likelihood=gaussian", f"likelihood.scale={scale}", *SHORT, "model.hidden=[8]")
    dataset = parts.load_dataset(config)
    vae = parts.build(config, dataset.spec)
    objective = parts.assemble("objective", config.objective, latent_dim=20, examples=9)
    batch = dataset.resident("train", torch.device("cpu")).batch(slice(0, 40))
    assert bool((batch.x[~batch.known] == 0).all())
    rubbish = Batch(torch.where(batch.known, batch.x, 1e6 * torch.randn_like(batch.x)), None, batch.known)
    found = []
    for each in (batch, rubbish):
        torch.manual_seed(3)
        vae.zero_grad()
        terms = objective(vae, each, Penalty())
        terms.loss.backward()
        found.append([terms.elbo.detach(), *(p.grad.clone() for p in vae.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0.0, atol=0.0)


def test_standardising_goes_by_what_is_observed(source, table):
    spec = parts.load_dataset(configure(*source, *LINEAR, "data.missing=observed", "data.valid=0", "data.test=0")).spec
    np.testing.assert_allclose(spec.mean, np.nanmean(table[0], 0), rtol=1e-5)
    np.testing.assert_allclose(spec.std, np.nanstd(table[0], 0), rtol=1e-5)


def test_densities_are_of_what_is_observed_in_the_datas_own_units(run, table):
    """The density of a part of x is that of its marginal, example by example, whatever the units that training took."""
    model = vae_cli.load(run, device="cpu")
    part = table[1][:40].copy()
    part[:, [1, 4]] = np.nan
    found = model.log_likelihood(part, samples=2000).double().numpy()
    expected = exact_log_likelihood(part, *parameters(model))
    np.testing.assert_allclose(found, expected, atol=0.15)
    assert abs(found.mean() - expected.mean()) < 0.01
    assert np.all(model.elbo(part, samples=500).numpy() <= expected + 0.1)


def test_imputations_are_conditional_means_and_seeds_reproduce(run, table, tmp_path):
    np.save(tmp_path / "some.npy", table[0][:30])
    given = {"source": str(tmp_path / "some.npy"), "n": None, "samples": 4000}
    found, again = (imputed(run, tmp_path / name, **given) for name in ("a", "b"))
    np.testing.assert_array_equal(found["imputed"], again["imputed"])
    own = parameters(vae_cli.load(run, device="cpu"))
    expected = conditional_means(table[0][:30], *own)
    assert found["effective_samples"].min() > 500
    error = monte_carlo_errors(table[0][:30], found["effective_samples"], *own)
    assert np.all(np.abs(found["imputed"] - expected) < 4.0 * error + 1e-4)
    assert np.abs(found["imputed"] - expected).mean() < 0.02
    np.testing.assert_array_equal(found["known"], ~np.isnan(table[0][:30]))
    gap = found["known"] == 0
    blind = np.nanmean(table[0], 0) * np.ones((30, 1))
    assert np.abs(found["imputed"] - table[1][:30])[gap].mean() < 0.6 * np.abs(blind - table[1][:30])[gap].mean()
    turns = imputed(run, tmp_path / "c", **given | {"method": "gibbs", "steps": 20})
    assert np.isfinite(turns["imputed"]).all()
    np.testing.assert_array_equal(turns["imputed"][~gap], table[0][:30][~gap])


def test_a_run_on_whole_examples_imputes_what_a_mask_hides(table, tmp_path):
    """Its encoder never saw a gap: posteriors of several fillings propose z, and the mean is still the exact one."""
    np.save(tmp_path / "whole.npy", table[1])
    np.save(tmp_path / "mask.npy", np.arange(D) >= 2)
    folder = finished(
        tmp_path / "run", "data=arrays", f"data.path={tmp_path}/whole.npy", *LINEAR, "likelihood.scale=per_element",
        "posterior=full_gaussian", "trainer.epochs=40", "optimizer.lr=0.01", "trainer.log_likelihood_samples=0",
    )  # fmt: skip
    found = imputed(folder, tmp_path / "out", mask=str(tmp_path / "mask.npy"), n=20, samples=4000, steps=20)
    hidden = np.where(found["known"], found["x"], np.nan)
    expected = conditional_means(hidden, *parameters(vae_cli.load(folder, device="cpu")))
    assert not found["known"][:, :2].any()
    assert np.abs(found["imputed"] - expected)[:, :2].mean() < 0.05
    np.save(tmp_path / "gaps.npy", table[0][:5])
    gaps = imputed(folder, tmp_path / "gaps", source=str(tmp_path / "gaps.npy"), steps=5)
    np.testing.assert_array_equal(gaps["known"], ~np.isnan(table[0][:5]))
    with pytest.raises(UserError, match=r"task=encode: x is empty, or holds NaN or infinity \(this model knows"):
        made(folder, "encode", tmp_path / "codes", source=str(tmp_path / "gaps.npy"))


def test_weights_that_come_in_parts_are_weights(table):
    log_w, x = 300.0 * torch.randn(12, 4), torch.randn(12, 4, 3)
    parts_of = WeightedMean()
    for k in range(0, 12, 4):
        parts_of.add(log_w[k : k + 4], x[k : k + 4])
    w = log_w.double().softmax(0)
    torch.testing.assert_close(parts_of.mean.double(), (w.unsqueeze(-1) * x).sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts_of.effective.double(), 1.0 / w.square().sum(0), rtol=1e-4, atol=1e-4)


def bad(path, change):
    x = np.random.default_rng(0).normal(size=(40, 3)).astype("float32") + 5.0
    change(x)
    np.savez(path, x=x, features=np.array(["age", "height", "weight"]))
    return ["data=arrays", f"data.path={path}", "likelihood=gaussian"]


@pytest.mark.parametrize(
    ("where", "value", "missing", "line"),
    [
        ((slice(None), 1), np.nan, "observed", r"observed: height \(column 1\) has no value in any training example"),
        ((7, slice(None)), np.nan, "observed", r"bad\.npz: example 7 holds no value at all \(one of 1 such\)"),
        ((3, 1), np.nan, "refused", r"first in example 3\); finite numbers, or NaN for missing ones with data.missing"),
        ((4, 1), np.inf, "observed", r"infinity or beyond float32 in `x` \(first in example 4\); finite numbers and"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(tmp_path, where, value, missing, line):
    def change(x):
        x[where] = value

    with pytest.raises(UserError, match=line) as told:
        parts.load_dataset(configure(*bad(tmp_path / "bad.npz", change), f"data.missing={missing}"))
    assert "\n" not in str(told.value)


def test_what_knows_no_missing_values_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"likelihood=autoregressive: needs every pixel.*; data\.missing=refused is allowed"
    ):
        configure("likelihood=autoregressive", "data.missing=observed")
    for source in (["data=synthetic"], ["data=digits"]):
        with pytest.raises(
            UserError, match=r"data\.missing=observed: has no effect on grey levels and streams; arrays"
        ):
            parts.load_dataset(configure(*source, "data.missing=observed"))
    whole = bad(tmp_path / "whole.npz", lambda x: None)
    (note,) = parts.load_dataset(configure(*whole, "data.missing=observed")).notes
    assert note.startswith("data.missing=observed, but no value is missing in training")


def test_a_large_column_is_judged_by_what_is_observed(tmp_path):
    x = np.array([[1e9 + k, k] for k in range(50)], "float64")
    x[3, 0] = np.nan
    np.save(tmp_path / "times.npy", x)
    with pytest.raises(UserError, match=r"element 0 of `x` varies by 14.* less than float32 tells apart"):
        parts.load_dataset(
            configure("data=arrays", f"data.path={tmp_path}/times.npy", "likelihood=gaussian", "data.missing=observed")
        )


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    """Pictures of 0 and 1 with a fifth of the pixels missing, and a run on them."""
    folder, rng = tmp_path_factory.mktemp("binary"), np.random.default_rng(0)
    x = (rng.random((300, 8, 8)) < np.where(np.arange(8) < 4, 0.9, 0.1)).astype("float32")
    x[rng.random(x.shape) < 0.2] = np.nan
    np.save(folder / "x.npy", x)
    given = ["data=arrays", f"data.path={folder}/x.npy", "data.missing=observed", "model.latent_dim=2"]
    return finished(folder / "run", *given, "trainer.steps=150", "optimizer.lr=0.01", drawn=True), x


def test_bits_are_those_of_what_is_observed(binary):
    folder, _ = binary
    found = json.loads((folder / "summary.json").read_text())
    assert found["measure"] == "log-mass of binary values, of what is observed"
    test = vae_cli.load_data(folder, "test")[0]
    observed = float((~test.isnan()).sum()) / len(test)
    assert observed < 56
    assert found["test/bits_per_dim"] == pytest.approx(-found["test/elbo"] / (observed * math.log(2)), rel=1e-6)
    entropy = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))  # bits of a pixel, of which nothing can be learned
    assert entropy - 0.05 < found["test/bits_per_dim"] < 0.75
    report = metrics.worse_than_no_model
    dataset = parts.load_dataset(vae_cli.load(folder, device="cpu").config)
    data = dataset.resident("test", torch.device("cpu"))
    vae = vae_cli.load(folder, device="cpu").vae
    result = metrics.evaluate(vae, data)
    assert report(result, "test", dataset.spec, vae.likelihood, data) is None
    result.elbo = -observed * math.log(2) - 1.0
    result.elbo_stderr = 0.0
    assert "is worse than a uniform guess of 1 bits" in report(result, "test", dataset.spec, vae.likelihood, data)


def test_missing_pixels_are_gaps_in_figures(binary, tmp_path):
    folder, _ = binary
    assert (folder / "report.html").is_file()
    assert (folder / "figures" / "reconstructions.png").is_file()
    model = vae_cli.load(folder, device="cpu")
    x = model.data("test")[0]
    drawn = pictures.grid(x[:1].unsqueeze(0), model.spec)
    side = drawn.shape[0] // 8
    rule = (drawn[side // 2 :: side, side // 2 :: side] == torch.tensor(pictures.RULE)).all(-1)
    torch.testing.assert_close(rule, x[0].isnan())
    paths = made(folder, "impute", tmp_path / "out", samples=50, mask="right")
    assert paths["imputed.png"].stat().st_size > 0
    assert not np.load(paths["imputed.npz"])["known"][:, :, 4:].any()
    for task in ("reconstruct", "traverse", "interpolate", "anomaly", "encode", "sample"):
        assert all(path.stat().st_size > 0 for path in made(folder, task, tmp_path / task).values())


def test_the_datas_gaps_come_back_and_every_call_takes_them(run, table):
    x, _ = vae_cli.load_data(run, "train")
    np.testing.assert_array_equal(x.isnan(), np.isnan(table[0]))
    np.testing.assert_allclose(x, table[0], atol=1e-5)
    model = vae_cli.load(run, device="cpu")
    assert model.encode(x[:7]).mean.shape == (7, L)
    assert model.kl_by_dimension(x[:7]).shape == (L,)
    assert bool(model.elbo(x[:7], samples=9).isfinite().all())
    with pytest.raises(ValueError, match="x is empty, or holds infinity"):
        model.elbo(np.full((2, D), np.inf))


def test_vae_eval_gives_the_numbers_of_the_run(run):
    given = command_settings("evaluate", run=str(run), split="train", examples=200, samples=20)
    given["metrics"] = ["elbo", "log_likelihood", "aggregate", "amortisation"]
    found = evaluate(validate_evaluate(given | {"amortisation_examples": 4}))
    assert found["train/log_likelihood"] >= found["train/elbo"]
    assert found["train/amortisation_gap"] > -0.2
    about = json.loads((run / "evaluation.json").read_text())
    assert about["train/measure"].endswith("standardised in training, of what is observed")


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_an_exported_encoder_takes_gaps(run, table, form, tmp_path):
    if form == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    settings = {"run": str(run), "format": form, "output": str(tmp_path / "out"), "trust": False}
    encoder = next(path for path in export(check(Export, settings, "")) if path.stem == "encoder")
    x = torch.from_numpy(table[0][:5])
    expected = vae_cli.load(run, device="cpu").encode(x).mean
    if form == "onnx":
        found = onnxruntime.InferenceSession(encoder, providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]
    else:
        found = torch.export.load(encoder).module()(x)[0].detach()
    np.testing.assert_allclose(found, expected, atol=1e-4)


COMPOSITIONS = {
    "conditional": ["conditional=label", "prior=conditional", "model=mlp"],
    "iwae": ["objective=iwae", "objective.samples=3"],
    "ema": ["trainer.ema=0.9"],
    "accumulate": ["trainer.accumulate=2"],
    "mmd": ["objective=mmd"],
    "beta_tc": ["objective=beta_tc"],
    "vamp": ["prior=vamp", "prior.components=5"],
    "optimal": ["likelihood.scale=optimal"],
    "laplace": ["likelihood=laplace"],
    "ladder": ["latent=ladder", "model=mlp"],
    "flow": ["posterior=flow"],
}


@pytest.fixture(scope="module")
def labelled(table, tmp_path_factory):
    path = tmp_path_factory.mktemp("labelled") / "table.npz"
    np.savez(path, x=table[0], y=(table[1][:, 0] > 3).astype("int64"))
    return ["data=arrays", f"data.path={path}", *LINEAR, *SHORT]


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_every_composition_learns_from_gaps(labelled, name, tmp_path):
    summary = train(tmp_path / "run", *labelled, *COMPOSITIONS[name])
    assert math.isfinite(summary["test/elbo"])
    assert summary["measure"].startswith("log-density of real values, in the data's own units, standardised in train")
    weights = checkpoint.load(tmp_path / "run" / "checkpoints" / "last.pt")["model"]
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_pictures_of_real_values_learn_from_gaps(tmp_path):
    x = np.random.default_rng(0).random((60, 2, 8, 8)).astype("float32")
    x[:, :, :3, :3] = np.where(np.arange(60)[:, None, None, None] % 2, np.nan, x[:, :, :3, :3])
    np.save(tmp_path / "x.npy", x)
    given = ["data=arrays", f"data.path={tmp_path}/x.npy", "likelihood=gaussian", "model=conv", "model.channels=[4,8]"]
    for latent in ("flat", "spatial"):
        summary = train(tmp_path / latent, *given, f"latent={latent}", *SHORT[:3])
        assert math.isfinite(summary["test/elbo"])


def test_a_run_with_gaps_goes_on_to_the_bit(labelled, tmp_path):
    train(tmp_path / "one", *labelled)
    train(tmp_path / "two", *labelled, "trainer.steps=5")
    train(tmp_path / "two", *labelled, resume=True)
    one, two = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=0.0, atol=0.0)


def test_two_ranks_train_what_one_does(labelled, tmp_path):
    """With parts that join the examples of a batch, and a σ fitted to what is known of all of them."""
    more = ["objective=beta_tc", "likelihood.scale=optimal"]
    given = [*labelled, *more, "trainer.batch_size=64", "trainer.log_every=3", "trainer.device=cpu"]
    train(tmp_path / "one", *given)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = ["torch.distributed.run", "--local-addr=127.0.0.1", "--standalone", "--nproc-per-node=2", "-m"]
    arguments = [*launch, "vae_cli.commands.train", *given, f"hydra.run.dir={tmp_path / 'two'}"]
    ran = subprocess.run(
        [sys.executable, "-m", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    one, two = (checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-3, atol=1e-4)
