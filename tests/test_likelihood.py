import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch.distributions import ContinuousBernoulli, Laplace, Normal

from tests.build import part
from vae_cli.distribution import Rescaled
from vae_cli.likelihood.discretized_logistic import DiscretizedLogisticElements
from vae_cli.likelihood.support import Real

LEVELS = 17


def likelihood(option, **given):
    return part("likelihood", option, **given)


MASSES = {
    "bernoulli": (likelihood("bernoulli"), 2),
    "categorical": (likelihood("categorical", levels=LEVELS), LEVELS),
    "logistic": (likelihood("discretized_logistic", levels=LEVELS), LEVELS),
    "logistics": (likelihood("discretized_logistic", levels=LEVELS, mixtures=3), LEVELS),
}
DENSITIES = {
    "continuous_bernoulli": (likelihood("continuous_bernoulli"), 0.0, 1.0),
    "gaussian": (likelihood("gaussian"), -60.0, 60.0),
    "gaussian_shared": (likelihood("gaussian", scale="shared"), -60.0, 60.0),
    "gaussian_per_element": (likelihood("gaussian", scale="per_element", shape=(1,)), -60.0, 60.0),
    "gaussian_own_units": (likelihood("gaussian", shape=(1,), center=[3.0], spread=[2.0]), -60.0, 60.0),
    "gaussian_fixed": (likelihood("gaussian", scale=0.3), -60.0, 60.0),
    "laplace": (likelihood("laplace"), -90.0, 90.0),
    "laplace_fixed": (likelihood("laplace", scale=0.3), -90.0, 90.0),
}
EVERY = {
    **{name: made for name, (made, _) in MASSES.items()},
    **{name: made for name, (made, *_) in DENSITIES.items()},
    "optimal": likelihood("gaussian", scale="optimal"),
    "laplace_optimal": likelihood("laplace", scale="optimal"),
}


def outputs_for(made, *shape, spread=1.0):
    """Decoder outputs [*batch, P, *event] in float64 for a batch [6] of events `shape`."""
    return spread * torch.randn(6, made.outputs, *shape, dtype=torch.float64)


@pytest.mark.parametrize("spread", [1.0, 8.0])
@pytest.mark.parametrize("name", MASSES)
def test_a_mass_sums_to_one(name, spread):
    made, levels = MASSES[name]
    p = made.double()(outputs_for(made, 1, spread=spread), 1)
    values = torch.linspace(0.0, 1.0, levels, dtype=torch.float64)
    total = sum(p.log_prob(value.expand(6, 1)).exp() for value in values)
    torch.testing.assert_close(total, torch.ones(6).double(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", DENSITIES)
def test_a_density_integrates_to_one(name):
    made, low, high = DENSITIES[name]
    p = made.double()(outputs_for(made, 1), 1)
    x = torch.linspace(low, high, 200_001, dtype=torch.float64)
    density = p.log_prob(x.view(-1, 1, 1)).exp().detach()
    torch.testing.assert_close(torch.trapezoid(density, x, dim=0), torch.ones(6).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_samples_have_the_mean_the_shape_and_the_support(name):
    made = EVERY[name].float().eval().requires_grad_(False)
    p = made(0.5 * torch.randn(3, made.outputs, 2, 2), 2)
    assert (p.batch_shape, p.event_shape, p.mean.shape) == ((3,), (2, 2), (3, 2, 2))
    x = p.sample((20_000,))
    assert x.shape == (20_000, 3, 2, 2)
    assert ((x.mean(0) - p.mean).abs() < 5.0 * x.std(0) / math.sqrt(20_000)).all()
    if not isinstance(made.support, Real):
        assert x.min() >= 0.0
        assert x.max() <= 1.0


@pytest.mark.parametrize("name", EVERY)
def test_elements_are_summed_and_shapes_broadcast_over_draws_of_z(name):
    made = EVERY[name].float().eval()
    p = made(torch.randn(5, 3, made.outputs, 2, 2), 2)
    x = torch.randint(2, (3, 2, 2)).float()
    total = p.log_prob(x)
    assert total.shape == (5, 3)
    one = made(torch.randn(1, made.outputs, 1), 1)
    two = made(torch.cat([torch.zeros(1, made.outputs, 2)], -1), 1)
    single = made(torch.zeros(1, made.outputs, 1), 1)
    assert one.log_prob(torch.ones(1, 1)).shape == (1,)
    torch.testing.assert_close(two.log_prob(torch.ones(1, 2)), 2.0 * single.log_prob(torch.ones(1, 1)))


@pytest.mark.parametrize("name", EVERY)
def test_x_may_have_more_batch_than_the_outputs(name):
    """Several x under one p(x|z): values and gradients are those of the outputs repeated."""
    made = EVERY[name].double().eval()
    outputs = torch.randn(3, made.outputs, 2, 2, dtype=torch.float64, requires_grad=True)
    for shape, own in (((5, 3), outputs), ((4,), outputs[:1]), ((3, 3), outputs)):
        x = torch.randint(2, (*shape, 2, 2)).double()
        repeated = own.expand(*shape, *own.shape[1:])
        found, expected = made(own, 2).log_prob(x), made(repeated, 2).log_prob(x)
        torch.testing.assert_close(found, expected)
        weights = torch.rand_like(found)
        one, other = (torch.autograd.grad((each * weights).sum(), outputs)[0] for each in (found, expected))
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", EVERY)
def test_extreme_outputs_keep_value_and_gradient_finite(name):
    made = EVERY[name].float().train()
    for size in (1e-8, 1.0, 30.0, 300.0):
        outputs = (size * torch.randn(4, made.outputs, 3)).requires_grad_()
        x = torch.tensor([0.0, 0.0, 1.0]).expand(4, 3)
        log_prob = made(outputs, 1).log_prob(x).sum()
        log_prob.backward()
        assert torch.isfinite(log_prob)
        assert torch.isfinite(outputs.grad).all()


def test_bernoulli_on_grey_values_is_the_cross_entropy():
    logits, x = torch.randn(4, 1, 9), torch.rand(4, 9)
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], x, reduction="none").sum(-1)
    torch.testing.assert_close(likelihood("bernoulli")(logits, 1).log_prob(x), expected)


def test_continuous_bernoulli_agrees_with_torch_and_is_smooth_at_one_half():
    logits = torch.cat([torch.linspace(-9, 9, 41), torch.linspace(-0.2, 0.2, 41)]).double()
    x = torch.rand_like(logits)
    ours = likelihood("continuous_bernoulli")(logits.view(-1, 1, 1), 1)
    theirs = ContinuousBernoulli(logits=logits, lims=(0.4999999, 0.5000001))
    torch.testing.assert_close(ours.log_prob(x[:, None]), theirs.log_prob(x), atol=1e-7, rtol=0)
    torch.testing.assert_close(ours.mean[:, 0], theirs.mean, atol=1e-5, rtol=0)


def continuous_bernoulli_cdf(x, logit):
    return x if logit == 0.0 else np.expm1(logit * x) / np.expm1(logit)


@pytest.mark.parametrize("logit", [-100.0, -50.0, -17.0, -3.0, -1e-3, 0.0, 1e-8, 0.1, 5.0, 20.0, 60.0, 100.0])
def test_continuous_bernoulli_is_drawn_from_its_density(logit):
    """Kolmogorov–Smirnov; on the side where most of the mass is, so that nothing is lost to rounding near 1."""
    x = likelihood("continuous_bernoulli")(torch.full((1, 1, 1), logit), 1).sample((20_000,)).flatten().double().numpy()
    x = 1.0 - x if logit > 0.0 else x
    assert kstest(x, lambda x: continuous_bernoulli_cdf(x, -abs(logit))).pvalue > 1e-3
    assert (x >= 0.0).all()
    assert (x <= 1.0).all()


@pytest.mark.parametrize("mixtures", [1, 3])
@pytest.mark.parametrize("levels", [2, 3, 17, 256])
def test_the_mean_of_the_discretised_logistic_is_that_of_its_masses(levels, mixtures):
    """From scales far below a level to far beyond the data, locations in and out of [0, 1] and on levels and edges."""
    scales = torch.linspace(-9.0, 5.0, 57, dtype=torch.float64).view(-1, 1)
    width = 1.0 / (levels - 1)
    locations = torch.tensor([-3.0, -0.01, 0.0, 0.4 * width, 0.5 * width, 0.3, 0.51, 1.0 - 0.5 * width, 1.0, 1.2, 9.0])
    loc = locations.double().expand(57, -1).unsqueeze(-1).repeat(mixtures, 1, 1, 1)
    loc[1:] += 0.2
    log_scale, logits = scales.expand(57, 11).unsqueeze(-1).repeat(mixtures, 1, 1, 1), torch.randn(mixtures, 57, 11, 1)
    log_scale[1:] -= 1.0
    p = DiscretizedLogisticElements(logits.double(), loc, log_scale, levels, 1)
    values = torch.linspace(0.0, 1.0, levels, dtype=torch.float64)
    expected = sum(value * p.element_log_prob(value.expand(57, 11, 1)).exp() for value in values)
    torch.testing.assert_close(p.mean, expected, rtol=0, atol=2e-5 * width)


@pytest.mark.parametrize("scale", ["per_pixel", "per_element", "shared", "optimal", 0.5])
def test_data_in_their_own_units_start_at_their_mean_and_spread(scale):
    center, spread = [100.0, -5.0], [30.0, 0.1]
    made = likelihood("gaussian", scale=scale, shape=(2,), center=center, spread=spread).eval()
    p = made(torch.zeros(1, made.outputs, 2), 1)
    assert p.mean[0].tolist() == center
    expected = {"per_pixel": spread, "per_element": spread, "shared": [math.hypot(30.0, 0.1) / math.sqrt(2.0)] * 2}
    assert p.scale[0].tolist() == pytest.approx(expected.get(scale, [1.0 if scale == "optimal" else 0.5] * 2), rel=0.1)
    torch.testing.assert_close(
        made.shown(torch.tensor([[130.0, -5.2]])), torch.tensor([[1.0, -2.0]]), rtol=1e-4, atol=1e-4
    )
    assert not {"center", "spread"} & set(made.state_dict())  # they are the data's, told anew to each model


def test_gaussian_and_laplace_agree_with_torch():
    outputs, x = torch.randn(4, 2, 9), torch.randn(4, 9)
    scale = torch.exp(math.log(0.01) + torch.nn.functional.softplus(outputs[:, 1] - math.log(0.01)))
    for ours, theirs in ((likelihood("gaussian"), Normal), (likelihood("laplace"), Laplace)):
        expected = theirs(outputs[:, 0], scale).log_prob(x).sum(-1)
        torch.testing.assert_close(ours(outputs, 1).log_prob(x), expected)
        assert ours(outputs, 1).scale.min() > 0.01


def test_optimal_scale_is_the_batch_error_in_training_and_frozen_in_evaluation():
    made, loc, x = likelihood("gaussian", scale="optimal").train(), torch.randn(5, 1, 8), torch.randn(5, 8)
    mse = (x - loc[:, 0]).square().mean()
    expected = -0.5 * 40 * (math.log(2 * math.pi) + 1 + mse.log())
    torch.testing.assert_close(made(loc, 1).log_prob(x).sum(), expected)
    assert made.running_scale == pytest.approx(mse.sqrt())
    made.eval()
    other = torch.randn(7, 8)
    expected = Normal(loc[:, 0].mean(0), mse.sqrt()).log_prob(other).sum(-1)
    torch.testing.assert_close(made(loc.mean(0, keepdim=True), 1).log_prob(other), expected)
    assert made.running_scale == pytest.approx(mse.sqrt())


def test_optimal_scale_lets_its_gradient_through():
    made, x = likelihood("gaussian", scale="optimal").train(), torch.randn(5, 8)
    loc = torch.randn(5, 1, 8, requires_grad=True)
    made(loc, 1).log_prob(x).sum().backward()
    error = (loc[:, 0] - x).detach()
    torch.testing.assert_close(loc.grad[:, 0], -error / error.square().mean())  # of −½ N log MSE


def test_edge_bins_take_the_tails():
    made = likelihood("discretized_logistic", levels=256)
    outputs = torch.zeros(2, 2, 1, dtype=torch.float64)
    outputs[0, 0], outputs[1, 0] = -40.0, 40.0  # far below and far above the data
    p = made.double()(outputs, 1)
    assert p.log_prob(torch.tensor([[0.0], [1.0]], dtype=torch.float64)) == pytest.approx([0.0, 0.0], abs=1e-9)


@pytest.mark.parametrize("spread", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("name", [name for name in (*MASSES, *DENSITIES) if not name.startswith("logistic")])
def test_variance_and_entropy_are_sums_or_integrals_and_the_mode_is_the_likeliest(name, spread):
    made, low, high = DENSITIES[name] if name in DENSITIES else (MASSES[name][0], 0.0, 1.0)
    if high > 1.0:
        spread = min(spread, 1.0)  # so that the grid holds the tails
    p = made.double()(outputs_for(made, 1, spread=spread), 1)
    x = torch.linspace(low, high, 400_001 if name in DENSITIES else MASSES[name][1], dtype=torch.float64)
    log_p = p.log_prob(x.view(-1, 1, 1)).detach()

    def total(values):
        return torch.trapezoid(values, x, dim=0) if name in DENSITIES else values.sum(0)

    mean, square = (total(x.pow(k).unsqueeze(1) * log_p.exp()) for k in (1, 2))
    torch.testing.assert_close(p.variance[:, 0].detach(), square - mean**2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(p.stddev, p.variance.sqrt())
    torch.testing.assert_close(p.entropy().detach(), total(-log_p.exp() * log_p), atol=1e-4, rtol=1e-4)
    assert (p.log_prob(p.mode) >= log_p.amax(0) - 1e-9).all()


def in_closed_form(distribution, name):
    """What a distribution says of itself: a number, or why there is none."""
    try:
        found = getattr(distribution, name)
        return found() if callable(found) else found
    except NotImplementedError as error:
        return str(error)


@pytest.mark.parametrize("name", EVERY)
def test_what_a_likelihood_has_no_closed_form_for_it_says(name):
    p = EVERY[name].float().eval()(torch.randn(6, EVERY[name].outputs, 2), 1)
    rescaled = Rescaled(p, torch.tensor([5.0, 50.0]), torch.tensor([2.0, 0.5]))
    for each in (p, rescaled):
        for found in map(partial(in_closed_form, each), ("mean", "mode", "stddev", "entropy")):
            if isinstance(found, str):
                assert name.startswith("logistic")
                assert re.fullmatch(r"\w+ has no \w+ in closed form; an estimate: .+", found)
            else:
                assert found.isfinite().all()
    if not name.startswith("logistic"):
        torch.testing.assert_close(rescaled.entropy(), p.entropy())  # log 2 + log 0.5 = 0
        torch.testing.assert_close(rescaled.stddev, p.stddev * torch.tensor([2.0, 0.5]))
