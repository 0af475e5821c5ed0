"""latent=codes: hard draws, the KL between 0 and D log K, log p(x) by enumeration, and every tool of a run."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import vae_cli
from tests.conftest import configure, train
from tests.ordeals import curves, equal, weights
from tests.test_generate import finished
from vae_cli import metrics, parts
from vae_cli.batch import Batch
from vae_cli.commands.generate import tasks
from vae_cli.commands.generate.latent import walk
from vae_cli.data import Spec
from vae_cli.system.errors import UserError

SPEC = Spec(shape=(3, 3), levels=2, low=0.0, high=1.0)
TOY = ["latent=codes", "latent.classes=3", "model.latent_dim=2", "model.hidden=[12]"]
RUN = ["data=digits", "latent=codes", "latent.classes=4", "model.latent_dim=6", "model.hidden=[32]",
       "trainer.steps=60", "trainer.log_likelihood_samples=4", "kl.weight=0.1", "optimizer.lr=0.01"]  # fmt: skip


def toy(*overrides):
    """A model of two latents of three classes, every weight far from its start."""
    torch.manual_seed(3)
    vae = parts.build(configure(*TOY, *overrides), SPEC).eval()
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(0.5 * torch.randn_like(p))
    return vae.requires_grad_(False)


def every_code():
    """All nine codes, one-hot [9, 6]."""
    eye = torch.eye(3)
    return torch.stack([torch.cat([eye[a], eye[b]]) for a, b in itertools.product(range(3), repeat=2)])


def examples(n=5):
    return Batch(torch.rand(n, 3, 3, generator=torch.Generator().manual_seed(0)).round())


@pytest.mark.parametrize("learned", ["false", "true"])
def test_log_p_of_x_agrees_with_enumeration_and_the_elbo_lies_below(learned):
    vae, batch, z = toy(f"prior.learned={learned}"), examples(), every_code()
    p, q = vae.prior(), vae.encode(batch)
    assert p.log_prob(z).exp().sum() == pytest.approx(1.0, abs=1e-5)
    if learned == "true":
        assert p.log_prob(z).std() > 0.1
    likelihoods = vae.decode(z.unsqueeze(1)).log_prob(batch.x)  # [9, B]
    exact = torch.logsumexp(likelihoods + p.log_prob(z).unsqueeze(1), 0)
    masses = q.log_prob(z.unsqueeze(1)).exp()  # [9, B]
    torch.testing.assert_close(masses.sum(0), torch.ones(5))
    n = 20_000
    w = (vae.log_weights(batch, n, n) - exact).exp().double()
    assert ((w.mean(0) - 1.0).abs() < 3.0 * w.std(0) / math.sqrt(n)).all()
    elbo = (masses * (likelihoods - q.log_prob(z.unsqueeze(1)) + p.log_prob(z).unsqueeze(1))).sum(0)
    output = vae(batch, n)
    error = output.log_likelihood.std(0) / math.sqrt(n)
    assert ((output.log_likelihood.mean(0) - output.kl.sum(-1) - elbo).abs() < 3.5 * error).all()
    assert (elbo < exact).all()


def test_the_kl_is_between_0_and_d_log_k_and_counts_latents():
    vae, batch = toy(), examples(50)
    output = vae(batch)
    z = every_code().unsqueeze(1)
    q, p = vae.encode(batch), vae.prior()
    by_enumeration = (q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))).sum(0)
    assert output.kl.shape == (50, 2)
    torch.testing.assert_close(output.kl.sum(-1), by_enumeration, atol=1e-5, rtol=1e-4)
    assert (output.kl >= 0).all()
    assert (output.kl <= math.log(3) + 1e-5).all()
    sure = vae.latent.q(100.0 * torch.eye(3)[torch.tensor([0, 2])].view(1, 6))
    (kl,) = vae.latent.kl_by_layer(sure, p, z)
    torch.testing.assert_close(kl, torch.full((1, 2), math.log(3)))


def test_draws_are_hard_to_the_bit_and_their_gradient_is_that_of_the_relaxation():
    vae = toy()
    logits = torch.randn(4, 6, requires_grad=True)
    z = vae.latent.q(logits).rsample((300,))
    assert set(z.unique().tolist()) == {0.0, 1.0}
    assert (z.view(300, 4, 2, 3).sum(-1) == 1).all()
    (z * torch.randn(6)).sum().backward()
    assert (logits.grad.abs() > 0).all()
    torch.testing.assert_close(logits.grad.view(4, 2, 3).sum(-1), torch.zeros(4, 2), atol=1e-3, rtol=0)  # of a softmax


def test_the_temperature_depends_on_the_epoch_alone():
    posterior = toy(
        "posterior.temperature=2", "posterior.final_temperature=0.5", "posterior.annealing=4"
    ).latent.posterior
    found = []
    for epoch in (3.0, 0.0, 9.0, 2.0, 3.0):
        posterior.at_epoch(epoch)
        found.append(float(posterior.tau))
    assert found == pytest.approx([2.0 * 0.25**0.75, 2.0, 0.5, 1.0, 2.0 * 0.25**0.75])


def test_a_run_goes_on_to_the_bit(tmp_path):
    annealed = [*RUN, "posterior.annealing=4", "posterior.final_temperature=0.3", "trainer.log_every=11"]
    train(tmp_path / "whole", *annealed)
    train(tmp_path / "cut", *annealed, "trainer.steps=33")  # where the whole run validates and logs as well
    train(tmp_path / "cut", *annealed, resume=True)
    assert equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))
    assert curves(tmp_path / "cut") == curves(tmp_path / "whole")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("codes") / "run", *RUN, "trainer.steps=200")


@pytest.fixture(scope="module")
def model(run):
    return vae_cli.load(run, device="cpu")


def test_a_run_learns_and_counts_latents(run, model):
    summary = json.loads((run / "summary.json").read_text())
    assert 0 < summary["test/active_units"] <= 6
    assert summary["test/elbo"] > -32.0
    assert len(model.kl_by_dimension(model.data()[0])) == 6
    q = model.encode(model.data()[0][:3])
    assert q.event_shape == (6, 4)
    assert q.entropy().shape == (3,)


def test_the_report_and_its_figures_are_drawn(tmp_path):
    summary = train(tmp_path, *RUN, "trainer.steps=3", drawn=True)
    assert not [line for line in summary.get("warnings", []) if "could not" in line]
    assert "6 latents of 4 classes" in (tmp_path / "report.html").read_text()
    for name in ("reconstructions", "samples", "elbo", "kl_by_dimension"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 5000
    assert not (tmp_path / "figures" / "kl_map.png").exists()


def drawn(model, folder, task, **settings):
    folder.mkdir(parents=True, exist_ok=True)
    if task not in ("sample", "manifold", "decode"):
        from vae_cli.commands.generate.sources import examples_of

        settings["examples"] = examples_of(model, "test", None)
    paths = getattr(tasks, task)(model, folder, **settings)
    return dict(np.load(next(path for path in paths if path.suffix == ".npz")))


def test_codes_go_out_to_a_file_and_come_back(model, tmp_path):
    found = drawn(model, tmp_path / "a", "encode")
    z, classes = found["z"], found["classes"]
    assert z.shape == (180, 6, 4)
    assert (z.argmax(-1) == classes).all()
    assert set(np.unique(z)) == {0.0, 1.0}
    np.savez(tmp_path / "codes.npz", z=z)
    np.savez(tmp_path / "flat.npz", z=z.reshape(180, 24))
    shaped, flat = (
        drawn(model, tmp_path / name, "decode", codes=f"{tmp_path}/{name}.npz", means=True)["x"]
        for name in ("codes", "flat")
    )
    assert (shaped == flat).all()
    again = drawn(model, tmp_path / "b", "reconstruct", n=180, means=True)
    np.testing.assert_allclose(again["reconstruction"], shaped[again["index"]], atol=1e-6)


def test_a_walk_changes_latents_one_by_one(model, tmp_path):
    x = model.data()[0][:2]
    a, b = model.code_of(x)
    way = walk(model, a, b, 50, "spherical")
    classes = model.vae.latent.classes_of(way)
    assert torch.equal(way[0], a)
    assert torch.equal(way[-1], b)
    assert ((classes[1:] != classes[:-1]).sum(-1) <= 1).all()
    found = drawn(model, tmp_path, "interpolate", indices=[0, 1], steps=5, kind="spherical")
    assert found["z"].shape == (1, 5, 6, 4)
    assert (found["z"].sum(-1) == 1).all()


def test_a_traversal_takes_one_latent_through_its_classes(model, tmp_path):
    found = drawn(model, tmp_path, "traverse", index=0, dimensions=3, steps=11, range=2.5)
    assert found["x"].shape == (3, 4, 8, 8)
    assert len(set(found["dimensions"].tolist())) == 3
    assert found["dimensions"].max() < 6
    codes = model.vae.latent.traverse(torch.eye(4).repeat(6, 1)[:6].reshape(24), torch.zeros(1, 24),
                                      torch.tensor([2]), torch.zeros(3))  # fmt: skip
    assert model.vae.latent.classes_of(codes)[0, :, 2].tolist() == [0, 2, 3]


def test_samples_come_from_the_prior_alone(model, tmp_path):
    found = drawn(model, tmp_path / "a", "sample", n=8, condition=None, temperature=1.0, sampler="prior", means=False)
    assert found["z"].shape == (8, 6, 4)
    assert (found["z"].sum(-1) == 1).all()
    with pytest.raises(UserError, match=r"task\.sampler=flow: the run's codes are classes; prior is allowed"):
        drawn(model, tmp_path / "b", "sample", n=8, condition=None, temperature=1.0, sampler="flow", means=True)
    with pytest.raises(ValueError, match=r"temperature=0\.5: codes of classes .*; 1 is allowed"):
        model.sample(3, temperature=0.5)
    with pytest.raises(UserError, match="task=manifold: the run's codes are classes"):
        drawn(model, tmp_path / "c", "manifold", n=3, condition=None)


def test_the_numbers_of_an_evaluation_are_finite_and_in_bounds(model):
    data = parts.load_dataset(model.config).resident("test", torch.device("cpu"))
    found = metrics.aggregate(model.vae, data)
    total = metrics.evaluate(model.vae, data, samples=4)
    assert 0.0 <= total.kl <= 6 * math.log(4)
    assert total.units == 6
    assert -0.5 < found["mutual_information"] <= found["mutual_information_bound"]
    assert found["mutual_information"] + found["marginal_kl"] == pytest.approx(total.kl, abs=0.5)


@pytest.mark.parametrize(
    "overrides",
    [
        ("latent=codes", "posterior=gaussian"),
        ("latent=codes", "prior=standard"),
        ("posterior=categorical",),
        ("prior=categorical",),
        ("latent=codes", "objective=beta_tc"),
        ("latent=codes", "objective=factor"),
        ("latent=codes", "prior=vamp"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_together_is_refused_in_one_line(overrides):
    with pytest.raises(UserError, match=r"is allowed") as told:
        configure(*overrides)
    assert "\n" not in str(told.value)
