import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from vae_cli.conditioning import Unconditional

from vae_cli import schedule
from vae_cli.distribution import _kl_of_elements
from vae_cli.likelihood import Bernoulli, Gaussian
from vae_cli.model.linear import Linear
from vae_cli.model.mlp import MLP
from vae_cli.objective import ELBO, kl_penalty
from vae_cli.posterior import Gaussian as Posterior
from vae_cli.prior import Standard
from vae_cli.vae import VAE, kl_by_dimension


def small_vae(latent_dim=3, likelihood=None, model=MLP, shape=(6,)):
    likelihood = likelihood or Bernoulli()
    model = model(shape=shape, latent_dim=latent_dim, condition_dim=0, outputs=likelihood.outputs)
    return VAE(
        model=model,
        posterior=Posterior(features=model.features, latent_dim=latent_dim),
        prior=Standard(latent_dim=latent_dim),
        likelihood=likelihood,
        conditioning=Unconditional(),
        shape=shape,
    )


def test_the_loss_is_the_formula():
    """One batch by hand: sums over pixels and dimensions, means over the batch, β as written."""
    vae, x = small_vae(), torch.randint(2, (5, 6)).float()
    torch.manual_seed(3)
    terms = ELBO()(vae, x, None, weight=4.0)
    torch.manual_seed(3)
    q = vae.encode(x).base_dist
    z = q.rsample((1,))[0]
    logits = vae.model.decode(z, None)[:, 0]
    reconstruction = (x * logits - torch.log1p(logits.exp())).sum() / 5
    kl = 0.5 * (q.loc**2 + q.scale**2 - 1 - 2 * q.scale.log()).sum() / 5
    torch.testing.assert_close(terms.loss, 4.0 * kl - reconstruction)
    torch.testing.assert_close(terms.elbo, (reconstruction - kl).detach())
    torch.testing.assert_close(terms.kl, kl.detach())


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
    class Output:
        kl = torch.tensor([[0.0, 2.0], [0.4, 4.0]], requires_grad=True)  # means 0.2 and 3
        layers = ((2, 2),)

    def penalty(*settings):
        return kl_penalty(Output, *settings).item()

    assert penalty(0.0, None) == pytest.approx(3.2)
    assert penalty(0.5, None) == pytest.approx(3.5)
    (gradient,) = torch.autograd.grad(kl_penalty(Output, 0.5, None), Output.kl)
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.5], [0.0, 0.5]]))  # none below the bits
    assert penalty(0.0, 5.0) == pytest.approx(1.8)
    assert penalty(0.0, 1.0) == pytest.approx(2.2)


def test_evaluation_knows_neither_weight_nor_free_bits():
    vae, x = small_vae(), torch.randint(2, (64, 6)).float()
    vae.posterior.head.bias.data.fill_(0.1)
    torch.manual_seed(1)
    plain = ELBO()(vae, x, None, weight=1.0)
    torch.manual_seed(1)
    loaded = ELBO()(vae, x, None, weight=7.0, free_bits=2.0)
    assert plain.elbo == loaded.elbo
    torch.testing.assert_close(-plain.loss.detach(), plain.elbo)
    assert loaded.loss > plain.loss


def test_gradients_reach_every_parameter_through_the_sample():
    vae = small_vae()
    ELBO(samples=2)(vae, torch.rand(5, 6), None, weight=1.0).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_more_samples_mean_less_noise_and_the_same_expectation():
    vae, x = small_vae(), torch.randint(2, (8, 6)).float()
    draws = {k: torch.stack([ELBO(samples=k)(vae, x, None, weight=1.0).elbo for _ in range(400)]) for k in (1, 8)}
    assert draws[8].std() < draws[1].std() / 2
    assert abs(draws[1].mean() - draws[8].mean()) < 4 * draws[1].std() / 20


def test_the_elbo_of_a_linear_model_is_below_its_exact_log_likelihood_and_the_gap_is_the_kl_to_the_true_posterior():
    """log p(x) = ELBO + KL(q ‖ p(z|x)), all three in closed form, float64."""
    vae = small_vae(2, Gaussian(scale=0.5), Linear, shape=(4,)).double()
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(0.7)
    x = torch.randn(3, 4, dtype=torch.float64)
    w, b = vae.model.readout.weight, vae.model.readout.bias
    q = MultivariateNormal(vae.encode(x).mean, torch.diag_embed(vae.encode(x).variance))
    marginal = MultivariateNormal(b, w @ w.T + 0.25 * torch.eye(4, dtype=torch.float64))
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / 0.25
    posterior = MultivariateNormal((x - b) @ w / 0.25 @ precision.inverse(), precision_matrix=precision)
    gap = kl_divergence(q, posterior)
    torch.manual_seed(0)
    output = vae(x, samples=200_000)
    elbo = output.log_likelihood.mean(0) - output.kl.sum(-1)
    error = output.log_likelihood.std(0) / math.sqrt(200_000)
    assert (gap > 0).all()
    assert ((marginal.log_prob(x) - gap - elbo).abs() < 4 * error).all()


def test_schedules_speak_of_one_loss():
    vae, x = small_vae(), torch.randint(2, (8, 6)).float()
    kl = schedule.Capacity(capacity=10.0, warmup=2.0, weight=3.0)
    torch.manual_seed(0)
    terms = ELBO()(vae, x, None, weight=kl.weight(1.0), target=kl.target(1.0))
    torch.testing.assert_close(terms.loss, 3.0 * (terms.kl - 5.0).abs() - terms.reconstruction)


def test_free_bits_of_dimensions_that_depend_on_one_another_stand_for_them_all():
    class Output:
        kl = torch.tensor([[2.0, 0.2, 3.0], [2.0, 0.0, 3.0]])  # one column for four dimensions, two for two
        layers = ((1, 4), (2, 2))

    assert kl_penalty(Output, 0.75, None).item() == pytest.approx(3.0 + 0.75 + 3.0)
