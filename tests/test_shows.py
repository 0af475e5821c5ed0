"""What the tool is for, on real data: the numbers it must reach."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA, FactorAnalysis
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.distributions import MultivariateNormal

from tests.conftest import configure, train
from vae_cli import metrics, parts
from vae_cli.data import Resident
from vae_cli.data.examples import Examples
from vae_cli.system import checkpoint

CPU = torch.device("cpu")


def trained(folder, *overrides):
    """Rebuild the model of a finished run."""
    config = configure(*overrides)
    dataset = parts.load_dataset(config)
    vae = parts.build(config, dataset.spec)
    vae.load_state_dict(checkpoint.load(folder / "checkpoints" / "last.pt")["model"])
    return vae.eval(), dataset


def test_linear_vae_reaches_probabilistic_pca(tmp_path):
    """log p(x) of the optimum is known (Tipping & Bishop 1999, eq. 4): the training ELBO must come within 0.05 nats."""
    summary = train(tmp_path, "experiment=ppca")
    data = parts.load_dataset(configure("experiment=ppca"))
    x = (data.train.x.double() / 16).flatten(1).numpy()
    assert len(x) == 1797
    values = PCA(svd_solver="full").fit(x).explained_variance_ * (len(x) - 1) / len(x)
    noise = values[10:].mean()
    logdet = torch.tensor(values[:10]).log().sum() + 54 * torch.tensor(noise).log()
    exact = float(-0.5 * (64 * torch.log(torch.tensor(2 * torch.pi)) + logdet + 64))
    assert exact == pytest.approx(17.4519, abs=1e-3)
    assert exact - 0.05 < summary["train/elbo"] < exact + 0.03  # the ELBO is an average of 64 draws
    assert summary["train_seconds"] < 60
    vae, dataset = trained(tmp_path, "experiment=ppca")
    data = dataset.fixed_train(CPU, 10_000, seed=0)
    w, b = (p.detach().double() for p in (vae.model.readout.weight, vae.model.readout.bias))
    scale = vae.decode(torch.zeros(1, 10)).scale.flatten()[0].double().item()
    marginal = MultivariateNormal(b, w @ w.T + scale**2 * torch.eye(64, dtype=torch.float64))
    known = marginal.log_prob(data.batch(slice(0, 10_000)).x.flatten(1).double())
    found = metrics.log_likelihood(vae, data, samples=5000)
    assert found.mean == pytest.approx(known.mean().item(), abs=3 * found.stderr)
    assert abs((found.log_likelihood - known).mean()) < 0.01  # the same examples: far within the error over examples
    assert found.curve[1] <= found.curve[5] <= found.curve[50] <= known.mean() + 1e-3
    assert found.gap.mean() < 0.05


def table_in_its_own_units():
    """600 rows of 30 columns with 5 factors beneath, means up to 20 and standard deviations from 0.3 to 7."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 5)) @ rng.normal(size=(5, 30)) + rng.uniform(0.5, 2.0, 30) * rng.normal(size=(600, 30))
    return (x / x.std(0) * np.geomspace(0.3, 7.0, 30) + rng.uniform(-20.0, 20.0, 30)).astype("float32")


def log_likelihood_of_ppca(x, factors):
    """Tipping & Bishop 1999, eq. 4, at its optimum: nats for one example."""
    values = np.linalg.eigvalsh(np.cov(x.T.astype(float), ddof=0))[::-1]
    noise = values[factors:].mean()
    logdet = np.log(values[:factors]).sum() + (x.shape[1] - factors) * np.log(noise)
    return -0.5 * (x.shape[1] * np.log(2 * np.pi) + logdet + x.shape[1])


@pytest.mark.parametrize("scale", ["shared", "per_element"])
def test_a_linear_vae_reaches_probabilistic_pca_and_factor_analysis_in_a_tables_own_units(tmp_path, scale):
    x = table_in_its_own_units()
    np.savez(tmp_path / "x.npz", x=x)
    exact, epochs = log_likelihood_of_ppca(x, 5), 400
    if scale == "per_element":
        epochs = 1000
        exact = FactorAnalysis(5, tol=1e-8, max_iter=5000, svd_method="lapack").fit(x).score(x)
    settings = ["data=arrays", f"data.path={tmp_path}/x.npz", "data.test=0", "data.standardize=false"]
    settings += ["model.latent_dim=5", f"likelihood.scale={scale}", "trainer.log_likelihood_samples=0"]
    summary = train(tmp_path / "run", "experiment=ppca", *settings, f"trainer.epochs={epochs}")
    assert exact - 0.05 < summary["train/elbo"] < exact + 0.03


COLLAPSING = ("model.hidden=[256,256,256,256]", "model.latent_dim=32", "optimizer.lr=0.003", "trainer.epochs=100")


def test_free_bits_and_annealing_against_posterior_collapse(tmp_path):
    """A deep relu network on the digits at a high learning rate: nearly all of its 32 units die at once."""
    last = {}
    for kl, extra in (("constant", []), ("free_bits", ["kl.free_bits=0.5"]), ("linear", ["kl.warmup=50"])):
        for seed in (1, 2):
            train(tmp_path / f"{kl}{seed}", f"kl={kl}", f"seed={seed}", *COLLAPSING, *extra)
            lines = (tmp_path / f"{kl}{seed}" / "metrics.jsonl").read_text().splitlines()
            last[kl, seed] = [line for line in map(json.loads, lines) if "valid/elbo" in line][-1]
    for seed in (1, 2):
        assert last["constant", seed]["valid/active_units"] < 8
        assert last["free_bits", seed]["valid/active_units"] > 24
        assert last["linear", seed]["valid/elbo"] >= last["constant", seed]["valid/elbo"]
    warnings = json.loads((tmp_path / "constant1" / "summary.json").read_text())["warnings"]
    assert any("posterior collapse" in line for line in warnings)


def digit_reader(data):
    """A small classifier of grey digits [N, 28, 28], and its accuracy on the test digits."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Unflatten(1, (1, 28)), nn.Conv2d(1, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 32, 5, 2), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, fused=True)
    x, y = data.train.x.float() / 255, data.train.y
    for _ in range(6):
        for part in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[part]), y[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (net(data.test.x.float() / 255).argmax(1) == data.test.y).float().mean().item()
    return net.eval(), accuracy


def test_a_conditional_model_draws_the_class_it_is_asked_for(tmp_path, mnist_root):
    settings = ("data=mnist", f"data.root={mnist_root}", "conditional=label", "trainer.epochs=25")
    settings += ("model.hidden=[400,400]", "model.latent_dim=10")
    train(tmp_path, *settings, drawn=True)
    vae, _ = trained(tmp_path, *settings)
    grey = parts.load_dataset(configure("data=mnist", f"data.root={mnist_root}", "data.binarize=none"))
    read, accuracy = digit_reader(grey)
    assert accuracy >= 0.95
    wanted = torch.arange(10).repeat_interleave(100)
    with torch.no_grad():
        right = (read(vae.sample(1000, wanted)).argmax(1) == wanted).float().view(10, 100).mean(1)
    assert right.mean() >= 0.90
    assert right.min() >= 0.80
    assert (tmp_path / "figures" / "class_samples.png").stat().st_size > 10_000


def test_mlp_on_mnist(tmp_path, mnist_root):
    summary = train(tmp_path, "data=mnist", f"data.root={mnist_root}", "trainer.epochs=60")
    assert summary["test/elbo"] >= -105.5
    assert summary["test/active_units"] >= 15


def test_anomalies_among_real_digits_are_told(tmp_path, mnist_root):
    """Digits against the same digits with their pixels shuffled, and against another data set's pictures."""
    settings = ("data=mnist", f"data.root={mnist_root}", "trainer.epochs=8", "trainer.log_likelihood_samples=0")
    train(tmp_path, *settings)
    vae, dataset = trained(tmp_path, *settings)
    x = dataset.resident("test", CPU).batch(slice(0, 500)).x
    pixels = torch.rand(len(x), 28 * 28, generator=torch.Generator().manual_seed(0)).argsort(1)
    shuffled = x.flatten(1).gather(1, pixels).view_as(x)
    small = torch.tensor(load_digits().images[:500], dtype=torch.float32) / 16  # other digits: 8×8, from other hands
    foreign = (nn.functional.interpolate(small[:, None], (28, 28), mode="bilinear")[:, 0] > 0.5).float()
    inverted = 1.0 - x
    scores = [metrics.log_likelihood(vae, Resident(Examples(each), lambda x: x, CPU), samples=16).log_likelihood
              for each in (x, shuffled, foreign, inverted)]  # fmt: skip
    for odd in scores[1:]:
        truth = [0] * len(x) + [1] * len(odd)
        assert roc_auc_score(truth, -torch.cat([scores[0], odd])) > 0.95


@pytest.mark.slow
def test_conv_on_mnist(tmp_path, mnist_root):
    summary = train(tmp_path, "data=mnist", f"data.root={mnist_root}", "model=conv", "trainer.epochs=20")
    assert summary["test/elbo"] >= -105.0
