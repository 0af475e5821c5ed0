"""Total correlation, MMD and the discriminator."""

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from tests.build import part, terms
from tests.test_objective import small_vae
from vae_cli.batch import Batch
from vae_cli.distribution import diagonal
from vae_cli.latent import Draw
from vae_cli.objective import Penalty
from vae_cli.objective.beta_tc import stratified_weights
from vae_cli.objective.factor import permute_dimensions
from vae_cli.system.errors import UserError
from vae_cli.vae import Output


def beta_tc(**settings):
    return part("objective", "beta_tc", **settings)


def drawn(q, z, p=None, log_likelihood=None):
    """What a model would give of draws z [K, B, D] of q, whose KL is nothing."""
    kl = torch.zeros(z.shape[1:])
    return Output(log_likelihood, Draw(z, q, p, kl, ((z.shape[-1],) * 2,), None), Batch(torch.empty(len(kl), 0)))


@pytest.mark.parametrize(("b", "n"), [(2, 10), (8, 100), (64, 64), (100, 9000)])
def test_each_row_of_the_stratified_weights_sums_to_one_with_its_own_on_the_diagonal(b, n):
    weights = stratified_weights(b, n, torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(weights.sum(1), torch.ones(b, dtype=torch.float64))
    torch.testing.assert_close(weights.diagonal(), torch.full((b,), 1 / n, dtype=torch.float64))
    assert (weights >= 0).all()


@pytest.mark.parametrize("weights", ["stratified", "weighted"])
def test_the_three_terms_add_up_to_the_kl(weights):
    model = small_vae().double()
    with torch.no_grad():
        model.latent.posterior.head.weight.mul_(3.0)
    output = model(Batch(torch.rand(16, 6, dtype=torch.float64)), samples=3)
    found = beta_tc(examples=1000, weights=weights, samples=3).decompose(output)
    monte_carlo = (output.draw.q.log_prob(output.z) - output.draw.p.log_prob(output.z)).mean()
    torch.testing.assert_close(sum(found), monte_carlo)


def test_the_weights_are_what_each_term_is_multiplied_by():
    model, x = small_vae(), torch.rand(16, 6)

    def loss(**weights):
        torch.manual_seed(0)
        return terms(beta_tc(examples=100, **weights), model, x, weight=0.5)

    plain = loss(alpha=0.0, beta=0.0, gamma=0.0)
    torch.testing.assert_close(plain.loss.detach(), -plain.reconstruction)
    one = loss(alpha=2.0, beta=3.0, gamma=4.0)
    t = one.extra
    expected = 0.5 * (2 * t["mutual_information"] + 3 * t["total_correlation"] + 4 * t["dimension_kl"])
    torch.testing.assert_close(one.loss.detach(), expected - one.reconstruction)


def test_the_total_correlation_of_a_known_aggregate_posterior():
    """q(z) of correlated means, the whole set as the batch: TC is that of a correlated Gaussian, in closed form."""
    torch.manual_seed(0)
    n, rho, noise = 1500, 0.8, 0.6
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
    means = MultivariateNormal(torch.zeros(2, dtype=torch.float64), cov).sample((n,))
    q, p = diagonal(means, torch.full_like(means, noise)), Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    output = drawn(q, q.sample((1,)), p)
    total = cov + noise**2 * torch.eye(2, dtype=torch.float64)
    exact = 0.5 * (total.diagonal().log().sum() - total.logdet())
    mutual = 0.5 * (total.logdet() - 2 * 2 * math.log(noise))
    for weights in ("stratified", "weighted"):
        found = beta_tc(examples=n, weights=weights).decompose(output)
        assert found[1].item() == pytest.approx(exact.item(), abs=0.08)
        assert found[0].item() == pytest.approx(mutual.item(), abs=0.1)


def test_the_reported_terms_do_not_depend_on_a_constant_of_the_number_of_examples():
    """Equal weights leave the paper's log N out of each density, whose gradient is 0."""
    output = small_vae()(Batch(torch.rand(16, 6)), samples=1)
    few, many = (beta_tc(examples=n, weights="weighted").decompose(output) for n in (16, 10_000))
    assert [each.item() for each in few] == [each.item() for each in many]
    assert few[0].item() == pytest.approx(0.0, abs=0.1)  # of an encoder that has learned nothing yet


def test_beta_tc_needs_independent_dimensions():
    q = MultivariateNormal(torch.zeros(4, 2), torch.eye(2))
    with pytest.raises(UserError, match=r"objective=beta_tc: needs .* is allowed$"):
        beta_tc(examples=10).decompose(drawn(q, torch.zeros(1, 4, 2)))


@pytest.mark.parametrize("kernel", ["rbf", "imq"])
def test_mmd_is_unbiased_and_sees_a_shift(kernel):
    mmd = part("objective", "mmd", kernel=kernel)
    same = torch.stack([mmd.squared(torch.randn(40, 3), torch.randn(40, 3)) for _ in range(400)])
    assert abs(same.mean()) < 4 * same.std() / 20
    shifted = torch.stack([mmd.squared(torch.randn(40, 3) + 1.0, torch.randn(40, 3)) for _ in range(20)])
    assert shifted.min() > same.mean() + 3 * same.std()


def test_mmd_of_two_points_by_hand():
    u, v = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [4.0]])
    k = lambda d: math.exp(-(d**2) / 3.0)  # noqa: E731
    expected = k(1) + k(2) - 2 * (k(2) + k(4) + k(1) + k(3)) / 4
    assert part("objective", "mmd", kernel="rbf", bandwidth=3.0).squared(u, v).item() == pytest.approx(expected)


def test_permuted_dimensions_keep_their_values_and_lose_their_company():
    z = torch.randn(5000, 1).expand(-1, 3).clone()
    other = permute_dimensions(z)
    torch.testing.assert_close(other.sort(0).values, z.sort(0).values)
    assert other.T.corrcoef()[0, 1].abs() < 0.06


def factor_loss(factor, z):
    """The loss and the terms of FactorVAE for draws z [1, B, D] of a model with nothing else to learn."""
    return factor.loss(None, drawn(None, z, log_likelihood=torch.zeros(z.shape[:2])), Penalty())


def test_the_discriminator_finds_the_total_correlation_and_its_gradients_stay_apart():
    torch.manual_seed(0)
    rho, factor = 0.9, part("objective", "factor", latent_dim=2, lr=1e-3, hidden=(64, 64))
    draw = MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, rho], [rho, 1.0]]))
    optimizer = torch.optim.Adam(factor.groups())
    found = []
    for step in range(800):
        loss, extra = factor_loss(factor, draw.sample((1, 512)).requires_grad_(True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found += [extra["total_correlation"].item()] if step >= 600 else []
    assert sum(found) / len(found) == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.12)
    factor.zero_grad()
    z = draw.sample((1, 512)).requires_grad_(True)
    factor_loss(factor, z)[0].backward()
    own = [p.grad.clone() for p in factor.parameters()]
    factor.zero_grad()
    factor.weight = 1000.0  # the weight of the model's penalty changes nothing for the discriminator
    torch.manual_seed(1)
    assert factor_loss(factor, z)[1]["discriminator_loss"].isfinite()
    assert all(g.abs().sum() > 0 for g in own)
    assert z.grad.abs().sum() > 0


def test_the_discriminator_learns_from_its_own_loss_alone():
    z = torch.randn(1, 64, 3, requires_grad=True)
    gradients = []
    for weight in (0.0, 500.0):
        torch.manual_seed(0)
        factor = part("objective", "factor", latent_dim=3, weight=weight)
        factor_loss(factor, z)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in factor.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])
