"""Priors and posteriors: densities integrate to one, draws follow them, and every KL agrees with Monte Carlo."""

import copy
import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.build import vae
from tests.test_likelihood import in_closed_form
from vae_cli.batch import Batch
from vae_cli.config import compose
from vae_cli.distribution import GaussianMixture, diagonal, kl_by_dimension, mixture
from vae_cli.system.errors import UserError

FACTS = {"shape": (4, 4), "names": ("a", "b", "c")}
PRIORS = {
    "standard": [],
    "mixture": ["prior.components=4"],
    "vamp": ["prior.components=5"],
    "flow": ["prior.hidden=[8]", "prior.transforms=2"],
    "conditional": ["conditional=label", "prior.hidden=[6]"],
}
POSTERIORS = {"gaussian": [], "full_gaussian": [], "flow": ["posterior.hidden=[8]", "posterior.context=4"]}
LADDER = ["latent=ladder", "latent.below=[1]", "latent.hidden=[8]"]


def disturbed(*overrides, latent_dim=2):
    """A small model whose every weight is away from its start, so that no part is the standard normal."""
    torch.manual_seed(1)
    model = [] if any(o.startswith("model=") for o in overrides) else ["model.hidden=[16]"]
    found = vae(*model, f"model.latent_dim={latent_dim}", *overrides, **FACTS).eval()
    found.initialize(Batch(torch.rand(20, 4, 4).round(), torch.arange(20) % 3))
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.25 * torch.randn_like(p))
    return found.requires_grad_(False)


def given(model, part):
    """One distribution over z of a model: its prior, or the posterior of one example."""
    x, y = torch.rand(1, 4, 4).round(), torch.tensor([1])
    c = model.conditioning(y)
    p = model.latent.p(None if c is None else c.double())
    distribution = p if part == "prior" else model.encode(Batch(x.double(), y))
    return distribution, len(distribution.batch_shape)


CASES = [("prior", f"prior={name}", *extra) for name, extra in PRIORS.items()]
CASES += [("posterior", f"posterior={name}", *extra) for name, extra in POSTERIORS.items()]
CASES += [("prior", "prior=vamp", "prior.components=3", "posterior=full_gaussian")]
CASES += [(part, *LADDER, "prior=mixture") for part in ("prior", "posterior")]


def dims(case):
    return 1 if "latent=ladder" in case else 2  # one for the top, one below: two in all


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_density_integrates_to_one(case):
    model = disturbed(*case[1:], latent_dim=dims(case)).double()
    distribution, batched = given(model, case[0])
    mean, spread = moments(distribution, batched)
    axes = [torch.linspace(-14, 14, 701, dtype=torch.float64) * spread[j] + mean[j] for j in range(2)]
    z = torch.cartesian_prod(*axes)
    density = log_prob(distribution, z, batched).exp().view(701, 701)
    total = torch.trapezoid(torch.trapezoid(density, axes[1], dim=1), axes[0])
    assert total == pytest.approx(1.0, abs=2e-3)


def moments(distribution, batched):
    z = distribution.sample((20_000,))
    z = z[:, 0] if batched else z
    return z.mean(0), z.std(0)


def log_prob(distribution, z, batched):
    return distribution.log_prob(z.unsqueeze(1))[:, 0] if batched else distribution.log_prob(z)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_draws_follow_the_density(case):
    """E_p[f] by draws equals ∫ f p by importance sampling from a wide Gaussian, for first and second moments."""
    model = disturbed(*case[1:], latent_dim=dims(case)).double()
    distribution, batched = given(model, case[0])
    mean, spread = moments(distribution, batched)
    wide = Independent(Normal(mean, 2.5 * spread), 1)
    n = 200_000
    z, own = wide.sample((n,)), distribution.sample((n,))
    own = own[:, 0] if batched else own
    weights = (log_prob(distribution, z, batched) - wide.log_prob(z)).exp()
    for f in (lambda u: u, lambda u: (u - mean) ** 2, lambda u: (u - mean).prod(-1, keepdim=True)):
        weighed, drawn = weights.unsqueeze(-1) * f(z), f(own)
        error = torch.sqrt(weighed.var(0) / n + drawn.var(0) / n)
        assert ((weighed.mean(0) - drawn.mean(0)).abs() < 5 * error).all()


@pytest.mark.parametrize("posterior", POSTERIORS)
@pytest.mark.parametrize("prior", PRIORS)
def test_the_kl_agrees_with_monte_carlo(prior, posterior):
    overrides = (f"prior={prior}", f"posterior={posterior}", *PRIORS[prior], *POSTERIORS[posterior])
    if (prior, posterior) == ("vamp", "flow"):
        with pytest.raises(UserError, match=r"prior=vamp: .* posterior=full_gaussian or gaussian is allowed"):
            compose(*overrides)
        return
    model = disturbed(*overrides)
    x, y = torch.rand(3, 4, 4).round(), torch.tensor([0, 1, 2])
    output = model(Batch(x, y), samples=20_000)
    q, p, z = output.draw.q, output.draw.p, output.z
    difference = q.log_prob(z) - p.log_prob(z)
    error = difference.std(0) / math.sqrt(len(z))
    assert ((output.kl.sum(-1) - difference.mean(0)).abs() < 4 * error + 1e-5).all()
    factorised = prior in ("standard", "conditional") and posterior != "flow"
    assert output.kl.shape[1] == (2 if factorised else 1)


def test_the_fused_kl_is_the_registered_one():
    torch.manual_seed(0)
    loc, raw = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True).unbind()
    q, p = (Normal(loc, raw.exp()), Normal(torch.randn(3).double(), torch.rand(3).double() + 0.5))
    found, wanted = kl_by_dimension(Independent(q, 1), Independent(p, 1), loc), kl_divergence(q, p)
    torch.testing.assert_close(found, wanted)
    weights = torch.rand_like(found)
    for a, b in zip(
        *(torch.autograd.grad((x * weights).sum(), (loc, raw), retain_graph=True) for x in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_chain_rule_of_a_full_gaussian_sums_to_the_kl_between_full_gaussians():
    tril = torch.randn(3, 4, 4).tril(-1) + torch.diag_embed(torch.rand(3, 4) + 0.3)
    q = MultivariateNormal(torch.randn(3, 4), scale_tril=tril)
    p = diagonal(torch.randn(4), torch.rand(4) + 0.5)
    full = MultivariateNormal(p.base_dist.loc, scale_tril=torch.diag_embed(p.base_dist.scale))
    terms = kl_by_dimension(q, p, torch.empty(0))
    assert terms.shape == (3, 4)
    assert (terms >= 0).all()
    torch.testing.assert_close(terms.sum(-1), kl_divergence(q, full))
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(q, full))


def test_a_mixture_of_one_is_its_component_and_so_is_a_vamp_of_one():
    loc, scale, z = torch.randn(1, 3), torch.rand(1, 3) + 0.2, torch.randn(7, 3)
    component = diagonal(loc[0], scale[0])
    torch.testing.assert_close(GaussianMixture(loc, scale).log_prob(z), component.log_prob(z))
    q = diagonal(torch.randn(2, 3), torch.rand(2, 3) + 0.3)
    draws = q.sample((100_000,))
    exact = kl_divergence(q, component)
    estimate = kl_by_dimension(q, GaussianMixture(loc, scale), draws)[:, 0]
    torch.testing.assert_close(estimate, exact, rtol=0.02, atol=0.02)
    model = disturbed("prior=vamp", "prior.components=1")
    pseudo = model.encode(Batch(model.latent.prior.inputs))
    z = torch.randn(9, 2)
    torch.testing.assert_close(model.prior().log_prob(z), pseudo.log_prob(z.unsqueeze(1))[:, 0])


def test_the_products_of_a_mixture_lose_nothing():
    """Components far away and sharp: the expanded squares cancel, and must still be right to float32."""
    torch.manual_seed(0)
    loc, scale = 30.0 * torch.randn(50, 20), torch.rand(50, 20) * 0.02 + 1e-3
    z = loc + scale * torch.randn(50, 20)
    plain = Independent(Normal(loc.double(), scale.double()), 1).log_prob(z.double().unsqueeze(1))
    exact = torch.logsumexp(plain, -1) - math.log(50)
    torch.testing.assert_close(GaussianMixture(loc, scale).log_prob(z).double(), exact, rtol=1e-6, atol=1e-4)
    general = mixture(MultivariateNormal(loc, scale_tril=torch.diag_embed(scale))).log_prob(z)
    torch.testing.assert_close(general.double(), exact, rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize("start", ["data", "noise"])
def test_pseudo_inputs_stay_in_the_range_of_the_data_and_start_where_they_should(start):
    model = vae("model=conv", "model.channels=[4]", "prior=vamp", f"prior.start={start}", **FACTS)
    x = torch.rand(600, 4, 4).round()
    model.initialize(Batch(x))
    inputs = model.latent.prior.inputs
    assert inputs.shape == (500, 4, 4)
    if start == "data":
        assert set((inputs.round() * 16).flatten(1).sum(1).tolist()) <= set((x * 16).flatten(1).sum(1).tolist())
        torch.testing.assert_close(inputs, inputs.round(), atol=0.021, rtol=0)
    else:
        torch.testing.assert_close(inputs.mean(0), x.mean(0), atol=0.1, rtol=0)
    optimizer = torch.optim.SGD(model.parameters(), 1000.0)
    model(Batch(x[:8])).kl.sum().backward()
    assert model.latent.prior.raw.grad.abs().sum() > 0
    optimizer.step()
    assert ((model.latent.prior.inputs >= 0) & (model.latent.prior.inputs <= 1)).all()


def test_averaged_weights_encode_pseudo_inputs_with_the_averaged_encoder():
    model = disturbed("prior=vamp", "prior.components=3")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.model.parameters():
            p.zero_()
    before, after = twin.prior(), disturbed("prior=vamp", "prior.components=3").prior()
    torch.testing.assert_close(before.loc, after.loc)
    assert not torch.equal(before.loc, model.prior().loc)
    assert sorted(twin.state_dict()) == sorted(model.state_dict())


def test_weights_are_held_once():
    for overrides in (("prior=vamp",), (*LADDER, "prior=vamp")):
        model = disturbed(*overrides, latent_dim=1)
        shared = [value.data_ptr() for value in model.state_dict().values() if value.numel()]
        assert len(shared) == len(set(shared))


def test_a_prior_of_conditions_needs_them():
    with pytest.raises(UserError, match="prior=conditional: needs labels"):
        compose("prior=conditional")


def test_a_conditional_model_has_pseudo_conditions():
    model = disturbed("prior=vamp", "conditional=label", "prior.components=3")
    assert model.latent.prior.conditions.shape == (3, 3)
    x = model.sample(5, torch.tensor([0, 1, 2, 0, 1]))
    assert x.shape == (5, 4, 4)


def test_a_flow_remembers_its_draw():
    model = disturbed("posterior=flow", *POSTERIORS["flow"], latent_dim=3)
    q = model.encode(Batch(torch.rand(4, 4, 4).round()))
    z = q.rsample((6,))
    torch.testing.assert_close(q.log_prob(z), q.log_prob(z.clone()), atol=1e-4, rtol=1e-4)
    assert q.mean.shape == (4, 3)


def test_the_ladder_decodes_its_lowest_layer_and_counts_the_kl_of_each():
    model = disturbed("latent=ladder", "latent.below=[3,2]", "latent.hidden=[12,8]", "posterior=full_gaussian")
    x = torch.rand(5, 4, 4).round()
    output = model(Batch(x), samples=2)
    assert output.draw.layers == ((2, 2), (2, 2), (3, 3))
    assert output.z.shape == (2, 5, 7)
    top = output.z.clone()
    top[..., :4] += 1.0
    torch.testing.assert_close(model.decode(output.z).mean, model.decode(top).mean)
    weights = model.log_weights(Batch(x), 4000, 1000)
    elbo = model(Batch(x), samples=4000)
    expected = elbo.log_likelihood.mean(0) - elbo.kl.sum(-1)
    error = 5 * weights.std(0) / math.sqrt(4000)
    assert ((weights.mean(0) - expected).abs() < error).all()


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_moments_are_those_of_draws_or_a_sentence(case):
    distribution, _ = given(disturbed(*case[1:], latent_dim=dims(case)).double(), case[0])
    draws = distribution.sample((4000,))
    for name, of_draws in (
        ("stddev", draws.std(0)),
        ("entropy", -distribution.log_prob(draws).mean(0)),
        ("mode", None),
    ):
        found = in_closed_form(distribution, name)
        if isinstance(found, str):
            assert "in closed form; an estimate: " in found
        else:
            assert of_draws is None or torch.allclose(found, of_draws, rtol=0.1, atol=0.05)
