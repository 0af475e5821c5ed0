"""The importance-weighted bound and the gradients of its encoder."""

import math

import pytest
import torch

from tests.build import part, terms, vae
from tests.test_objective import linear_vae
from vae_cli.batch import Batch


def iwae(samples, gradient="dreg"):
    return part("objective", "iwae", samples=samples, gradient=gradient)


def toy():
    """A linear Gaussian model whose posterior is off: every gradient has something to say."""
    torch.manual_seed(5)
    model = linear_vae(0.6, (3,)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.8)
        model.latent.posterior.head.bias.add_(0.3)
    return model, torch.randn(1, 3, dtype=torch.float64)


def gradients(objective, repeats, weight=1.0):
    """Independent draws of the gradients of encoder [R, P] and decoder [R, P']: one batch entry a draw."""
    model, x = toy()
    out = {"encoder": [], "decoder": []}
    for _ in range(repeats):
        model.zero_grad()
        terms(objective, model, x, weight=weight).loss.backward()
        for name, owner in (("encoder", model.latent.posterior), ("decoder", model.model)):
            out[name].append(torch.cat([p.grad.flatten() for p in owner.parameters()]))
    return {name: torch.stack(value) for name, value in out.items()}


def agree(a, b):
    error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
    return ((a.mean(0) - b.mean(0)).abs() < 4.5 * error + 1e-9).all()


@pytest.mark.parametrize("weight", [1.0, 0.4])
@pytest.mark.parametrize(("samples", "gradient"), [(1, "stl"), (1, "dreg"), (4, "dreg")])
def test_the_estimators_of_the_gradient_agree_in_expectation(samples, gradient, weight):
    """`stl` for one draw, where it is unbiased; `dreg` always, also under a KL weight."""
    plain = gradients(iwae(samples=samples, gradient="standard"), 3000, weight)
    other = gradients(iwae(samples=samples, gradient=gradient), 3000, weight)
    assert agree(plain["encoder"], other["encoder"])
    assert agree(plain["decoder"], other["decoder"])


def two_layers():
    """A ladder whose q(z_1|x, z_2) holds the weights of p(z_1|z_2)."""
    torch.manual_seed(5)
    layers = ("latent=ladder", "latent.below=[2]", "latent.hidden=[3]", "latent.activation=tanh", "model.latent_dim=1")
    body = ("model=mlp", "model.hidden=[4]", "model.activation=tanh", "likelihood=gaussian", "likelihood.scale=0.6")
    return vae(*body, *layers, shape=(3,), levels=None).double()


def ladder_gradients(objective, weight, repeats=60):
    """Gradients [R, P] of all weights, each a mean of 400 draws for one example."""
    model, out = two_layers(), []
    x = torch.tensor([0.3, -1.2, 0.8], dtype=torch.float64).expand(400, 3)
    for _ in range(repeats):
        model.zero_grad()
        terms(objective, model, x, weight=weight).loss.backward()
        out.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return torch.stack(out)


@pytest.mark.parametrize(("samples", "gradient", "weight"), [(1, "stl", 1.0), (4, "dreg", 1.0), (4, "dreg", 0.4)])
def test_the_estimators_agree_where_p_and_q_share_weights(samples, gradient, weight):
    plain = ladder_gradients(iwae(samples=samples, gradient="standard"), weight)
    other = ladder_gradients(iwae(samples=samples, gradient=gradient), weight)
    assert agree(plain, other)


@pytest.mark.parametrize("weight", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("gradient", ["standard", "dreg"])
def test_the_reported_bound_knows_no_weight(gradient, weight):
    model, x = toy()
    bounds = []
    for each in (1.0, weight):
        torch.manual_seed(0)
        bounds.append(terms(iwae(samples=5, gradient=gradient), model, x, weight=each).extra["bound"].item())
    assert bounds[0] == bounds[1]


def test_stl_is_biased_for_many_draws():
    plain = gradients(iwae(samples=8, gradient="standard"), 3000)
    other = gradients(iwae(samples=8, gradient="stl"), 3000)
    assert not agree(plain["encoder"], other["encoder"])
    assert agree(plain["decoder"], other["decoder"])


def test_dreg_has_the_lowest_variance_for_the_encoder_at_64_draws():
    variance = {
        gradient: gradients(iwae(samples=64, gradient=gradient), 800)["encoder"].var(0).sum()
        for gradient in ("standard", "stl", "dreg")
    }
    assert variance["dreg"] < variance["standard"] / 4
    assert variance["dreg"] < variance["stl"]


def test_the_signal_of_the_standard_gradient_drowns_as_draws_grow_and_that_of_dreg_does_not():
    """Rainforth et al. 2018: the encoder's signal-to-noise ratio falls as K^-½; doubly reparameterised it rises."""

    def ratio(gradient, samples):
        draws = gradients(iwae(samples=samples, gradient=gradient), 800)["encoder"]
        return (draws.mean(0).norm() / draws.var(0).sum().sqrt()).item()

    assert ratio("dreg", 64) > 1.5 * ratio("dreg", 1)
    assert ratio("standard", 64) < ratio("dreg", 64) / 3


@pytest.mark.parametrize("gradient", ["standard", "stl", "dreg"])
def test_one_draw_is_the_elbo_and_bounds_are_ordered(gradient):
    model, x = toy()
    x = torch.randn(20_000, 3, dtype=torch.float64)
    bounds = {}
    with torch.no_grad():
        for samples in (1, 5, 50):
            torch.manual_seed(0)
            found = terms(iwae(samples=samples, gradient=gradient), model, x, weight=1.0)
            bounds[samples] = found.extra["bound"].item()
            torch.testing.assert_close(found.loss, -found.extra["bound"])
        elbo = terms(part("objective", "elbo", samples=20), model, x).elbo.item()
    assert bounds[1] == pytest.approx(elbo, abs=0.1)
    assert bounds[1] < bounds[5] < bounds[50]
    w, b = model.model.readout.weight, model.model.readout.bias
    marginal = torch.distributions.MultivariateNormal(b, w @ w.T + 0.36 * torch.eye(3, dtype=torch.float64))
    assert bounds[50] < marginal.log_prob(x).mean().item() + 0.02


def test_the_weight_multiplies_the_log_ratio_of_prior_and_posterior():
    model, x = toy()
    torch.manual_seed(0)
    found = terms(iwae(samples=3, gradient="standard"), model, x, weight=0.0)
    torch.manual_seed(0)
    output = model(Batch(x), samples=3)
    expected = (torch.logsumexp(output.log_likelihood, 0) - math.log(3)).mean()
    torch.testing.assert_close(found.loss, -expected)


def test_parameters_that_were_held_learn_again():
    model, x = toy()
    terms(iwae(samples=2), model, x, weight=1.0).loss.backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
