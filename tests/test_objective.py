import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from tests.build import part, terms, vae
from vae_cli.batch import Batch
from vae_cli.distribution import kl_by_dimension
from vae_cli.distribution.kl import _kl_of_elements
from vae_cli.latent import Draw
from vae_cli.objective import Penalty


def small_vae(*overrides, latent_dim=3, **facts):
    return vae(f"model.latent_dim={latent_dim}", *overrides, **facts)


def linear_vae(scale, shape, latent_dim=2):
    """A linear Gaussian model: everything about it is known in closed form."""
    settings = ("model=linear", "likelihood=gaussian", f"likelihood.scale={scale}")
    return small_vae(*settings, latent_dim=latent_dim, shape=shape, levels=None)


def draw(kl, layers):
    """A draw of which only the KL is looked at."""
    return Draw(None, None, None, kl, layers, None)


def test_the_loss_is_the_formula():
    """One batch by hand: sums over pixels and dimensions, means over the batch, β as written."""
    model, x = small_vae(), torch.randint(2, (5, 6)).float()
    torch.manual_seed(3)
    found = terms(part("objective", "elbo"), model, x, weight=4.0)
    torch.manual_seed(3)
    q = model.encode(Batch(x)).base_dist
    z = q.rsample((1,))[0]
    logits = model.model.decode(z, None)[:, 0]
    reconstruction = (x * logits - torch.log1p(logits.exp())).sum() / 5
    kl = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum() / 5
    torch.testing.assert_close(found.loss, 4.0 * kl - reconstruction)
    torch.testing.assert_close(found.elbo, (reconstruction - kl).detach())
    torch.testing.assert_close(found.kl, kl.detach())


def test_closed_form_kl_equals_monte_carlo():
    q = Independent(Normal(torch.randn(4, 3), torch.rand(4, 3) + 0.3), 1)
    p = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    z = q.sample((200_000,))
    exact = kl_by_dimension(q, p, z)
    assert exact.shape == (4, 3)
    difference = q.log_prob(z) - p.log_prob(z)
    error = difference.std(0) / math.sqrt(len(z))
    assert ((exact.sum(-1) - difference.mean(0)).abs() < 4 * error).all()
    full = MultivariateNormal(torch.zeros(3), torch.eye(3))
    torch.testing.assert_close(kl_by_dimension(q, full, z)[:, 0], exact.sum(-1), atol=0.02, rtol=0)


@pytest.mark.parametrize(("q", "p"), [((1, 3), (4, 3)), ((4, 3), (4, 3)), ((3,), (4, 3)), ((4, 3), (3,))])
def test_the_fused_kl_has_the_gradient_of_its_formula_where_shapes_broadcast(q, p):
    loc, scale = (torch.rand(q, dtype=torch.float64).add(0.5).requires_grad_() for _ in range(2))
    other = Normal(torch.randn(p, dtype=torch.float64), torch.rand(p, dtype=torch.float64) + 0.5)
    fused, plain = _kl_of_elements(Normal(loc, scale), other), kl_divergence(Normal(loc, scale), other)
    torch.testing.assert_close(fused, plain)
    weights = torch.rand_like(plain)
    for one, two in zip(
        *(torch.autograd.grad((kl * weights).sum(), (loc, scale)) for kl in (fused, plain)), strict=True
    ):
        torch.testing.assert_close(one, two)


def test_free_bits_hold_the_batch_mean_inside_the_maximum():
    kl = torch.tensor([[0.0, 2.0], [0.4, 4.0]], requires_grad=True)  # means 0.2 and 3

    def penalty(**settings):
        return Penalty(**settings)(draw(kl, ((2, 2),)))

    assert penalty().item() == pytest.approx(3.2)
    assert penalty(free_bits=0.5).item() == pytest.approx(3.5)
    assert penalty(weight=2.0, free_bits=0.5).item() == pytest.approx(7.0)
    (gradient,) = torch.autograd.grad(penalty(free_bits=0.5), kl)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))  # none below the bits
    assert penalty(target=5.0).item() == pytest.approx(1.8)
    assert penalty(target=1.0).item() == pytest.approx(2.2)


def test_evaluation_knows_neither_weight_nor_free_bits():
    model, x = small_vae(), torch.randint(2, (64, 6)).float()
    model.latent.posterior.head.bias.data.fill_(0.1)
    torch.manual_seed(1)
    plain = terms(part("objective", "elbo"), model, x)
    torch.manual_seed(1)
    loaded = terms(part("objective", "elbo"), model, x, weight=7.0, free_bits=2.0)
    assert plain.elbo == loaded.elbo
    torch.testing.assert_close(-plain.loss.detach(), plain.elbo)
    assert loaded.loss > plain.loss


def test_gradients_reach_every_parameter_through_the_sample():
    model = small_vae()
    terms(part("objective", "elbo", samples=2), model, torch.rand(5, 6)).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_more_samples_mean_less_noise_and_the_same_expectation():
    model, x = small_vae(), torch.randint(2, (8, 6)).float()
    draws = {}
    for k in (1, 8):
        objective = part("objective", "elbo", samples=k)
        draws[k] = torch.stack([terms(objective, model, x).elbo for _ in range(400)])
    assert draws[8].std() < draws[1].std() / 2
    assert abs(draws[1].mean() - draws[8].mean()) < 4 * draws[1].std() / 20


def test_the_elbo_of_a_linear_model_is_below_its_exact_log_likelihood_and_the_gap_is_the_kl_to_the_true_posterior():
    """log p(x) = ELBO + KL(q ‖ p(z|x)), all three in closed form, float64."""
    model = linear_vae(0.5, (4,)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.7)
    x = torch.randn(3, 4, dtype=torch.float64)
    w, b = model.model.readout.weight, model.model.readout.bias
    q = MultivariateNormal(model.encode(Batch(x)).mean, torch.diag_embed(model.encode(Batch(x)).variance))
    marginal = MultivariateNormal(b, w @ w.T + 0.25 * torch.eye(4, dtype=torch.float64))
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / 0.25
    posterior = MultivariateNormal((x - b) @ w / 0.25 @ precision.inverse(), precision_matrix=precision)
    gap = kl_divergence(q, posterior)
    torch.manual_seed(0)
    output = model(Batch(x), samples=200_000)
    elbo = output.log_likelihood.mean(0) - output.kl.sum(-1)
    error = output.log_likelihood.std(0) / math.sqrt(200_000)
    assert (gap > 0).all()
    assert ((marginal.log_prob(x) - gap - elbo).abs() < 4 * error).all()


def test_schedules_speak_of_one_loss():
    model, x = small_vae(), torch.randint(2, (8, 6)).float()
    kl = part("kl", "capacity", capacity=10.0, warmup=2.0, weight=3.0)
    torch.manual_seed(0)
    found = terms(part("objective", "elbo"), model, x, weight=kl.weight(1.0), target=kl.target(1.0))
    torch.testing.assert_close(found.loss, 3.0 * (found.kl - 5.0).abs() - found.reconstruction)


def test_free_bits_of_dimensions_that_depend_on_one_another_stand_for_them_all():
    kl = torch.tensor([[2.0, 0.2, 3.0], [2.0, 0.0, 3.0]])  # one column for four dimensions, two for two
    found = Penalty(free_bits=0.75)(draw(kl, ((1, 4), (2, 2))))
    assert found.item() == pytest.approx(3.0 + 0.75 + 3.0)
