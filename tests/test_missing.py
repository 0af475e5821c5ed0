"""Missing values (data.missing=observed): the model learns from what is there, and fills in what is not."""

import json
import math

import numpy as np
import pytest
import torch
import yaml

import vae_cli
from tests.conftest import configure, train
from vae_cli import metrics, parts
from vae_cli.batch import Batch
from vae_cli.commands.evaluate import evaluate
from vae_cli.commands.export import export
from vae_cli.commands.generate.app import generate, validate
from vae_cli.commands.generate.imputation import WeightedMean
from vae_cli.config import check, compose, validate_evaluate
from vae_cli.config.commands import Export
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
        both = np.linalg.solve(
            np.einsum("nd,nij->dij", known, second), np.einsum("nd,ni->di", full, z)[..., None]
        )[..., 0]
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
        "posterior=full_gaussian", "trainer.epochs=60", "optimizer.lr=0.01", "lr_schedule=cosine", "data.test=0",
        "data.valid=0", "trainer.log_likelihood_samples=0",
    )  # fmt: skip


def made(folder, task, output, **settings):
    """Run a task of vae-generate, and return the arrays that it wrote."""
    composed = compose_task(folder, task, output, settings)
    return np.load(next(path for path in generate(composed) if path.suffix == ".npz"))


def compose_task(folder, task, output, settings):
    from omegaconf import OmegaConf

    from vae_cli.config.check import composed

    given = [f"task.{key}={'null' if value is None else value}" for key, value in settings.items()]
    raw = composed("generate", [f"task={task}", f"run={folder}", f"output={output}", "device=cpu", *given])
    return validate(OmegaConf.to_container(raw, resolve=True))


def test_a_linear_model_reaches_factor_analysis(run, table):
    model = vae_cli.load(run, device="cpu")
    best = exact_log_likelihood(table[0], *fitted(table[0].astype("float64"), shared=False)).mean()
    found = model.log_likelihood(table[0], samples=300).double().numpy()
    own = exact_log_likelihood(table[0], *parameters(model))
    assert abs(found.mean() - own.mean()) < 0.005  # importance sampling gives what the model's own parameters do
    assert best - 0.1 < own.mean() <= best + 1e-6
    print(best, own.mean(), found.mean())
