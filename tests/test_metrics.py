"""Honest numbers: what is estimated equals what is known in closed form."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal

from tests.build import part
from tests.conftest import TINY, configure, train
from tests.test_objective import linear_vae
from vae_cli import metrics, parts
from vae_cli.batch import Batch
from vae_cli.data import Examples, Resident, Spec
from vae_cli.data.batches.pixels import transform
from vae_cli.metrics.aggregate import MOST
from vae_cli.metrics.gap import amortisation
from vae_cli.metrics.quality import frechet, precision_recall
from vae_cli.system.errors import UserError
from vae_cli.system.machine import prepare_compiler

CPU = torch.device("cpu")


def resident(x, y=None):
    return Resident(Examples(x, y), transform("scale", None), CPU)


def linear(n=300, noise=0.5):
    """A linear Gaussian model, examples, and log p(x) of each in closed form."""
    torch.manual_seed(0)
    vae = linear_vae(noise, (5,))
    w, b = (p.detach().double() for p in (vae.model.readout.weight, vae.model.readout.bias))
    marginal = MultivariateNormal(b, w @ w.T + noise**2 * torch.eye(5, dtype=torch.float64))
    x = marginal.sample((n,))
    _near(vae, w, b, noise)
    return vae, resident(x.float()), marginal.log_prob(x), (w, b, noise)


def _near(vae, w, b, noise):
    """Give a linear model a factorised q that is near the true posterior, but not there."""
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / noise**2
    gain = precision.inverse() @ w.T / noise**2
    head = vae.latent.posterior.head
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:2], head.bias[:2] = gain, -gain @ b + 0.2
        head.bias[2:] = -0.5 * precision.diagonal().log()


def perfect(vae, w, b, noise):
    """Give a linear model the true posterior as its q."""
    posterior = part("posterior", "full_gaussian", head=lambda *wanted: vae.model.head(2, *wanted), latent_dim=2)
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / noise**2
    gain = precision.inverse() @ w.T / noise**2
    tril = torch.linalg.cholesky(precision.inverse())
    with torch.no_grad():
        for p in posterior.parameters():
            p.zero_()
        posterior.head.weight[:2], posterior.head.bias[:2] = gain, -gain @ b
        posterior.head.bias[2:] = torch.cat([tril.diagonal().log(), tril[1:, 0]])
    vae.latent.posterior = posterior


def test_importance_sampling_finds_the_exact_log_likelihood():
    vae, data, exact, _ = linear()
    found = metrics.log_likelihood(vae, data, samples=5000)
    difference = found.log_likelihood - exact
    assert abs(difference.mean()) < 3 * difference.std() / math.sqrt(len(difference)) + 1e-3
    assert found.mean == pytest.approx(exact.mean().item(), abs=3 * found.stderr)
    assert found.stderr == pytest.approx(exact.std().item() / math.sqrt(300), rel=0.1)
    curve = found.curve
    assert list(curve) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
    assert curve[1] <= curve[5] <= curve[50] <= curve[5000] <= exact.mean() + 0.01
    assert curve[1] == pytest.approx(found.elbo.mean().item())
    assert (found.effective_samples >= 1).all()
    assert (found.effective_samples <= 5000).all()


def test_the_gap_is_the_kl_to_the_true_posterior_and_nothing_is_left_where_q_is_it():
    vae, data, exact, known = linear()
    w, b, noise = known
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w / noise**2
    x = data.examples.x.double()
    true = MultivariateNormal((x - b) @ w / noise**2 @ precision.inverse(), precision_matrix=precision)
    with torch.no_grad():
        q = vae.encode(Batch(data.examples.x)).base_dist
    q = MultivariateNormal(q.loc.double(), torch.diag_embed(q.scale.double() ** 2))
    expected = torch.distributions.kl_divergence(q, true)
    found = metrics.log_likelihood(vae, data, samples=5000)
    torch.testing.assert_close(found.gap.mean(), expected.mean(), rtol=0.02, atol=0.01)
    perfect(vae, *known)
    found = metrics.log_likelihood(vae, data, samples=10)
    torch.testing.assert_close(found.log_likelihood, exact, atol=1e-4, rtol=1e-4)
    assert found.gap.abs().max() < 1e-4
    torch.testing.assert_close(found.effective_samples, torch.full((300,), 10.0, dtype=torch.float64))


def test_batches_of_examples_and_draws_change_nothing_but_the_draws():
    vae, data, exact, known = linear(n=30)
    perfect(vae, *known)
    for batch_size in (1, 7, 64):
        found = metrics.log_likelihood(vae, data, samples=20, batch_size=batch_size)
        torch.testing.assert_close(found.log_likelihood, exact, atol=1e-4, rtol=1e-4)
    torch.manual_seed(3)
    before = torch.rand(1)
    torch.manual_seed(3)
    one = metrics.log_likelihood(vae.train(), data, samples=20, seed=5)
    assert torch.equal(before, torch.rand(1))
    assert vae.training
    torch.testing.assert_close(one.elbo, metrics.log_likelihood(vae, data, samples=20, seed=5).elbo)


@pytest.mark.slow
def test_compiled_importance_sampling_gives_the_same_numbers():
    vae, data, *_ = linear(60)
    prepare_compiler()
    plain, compiled = (metrics.log_likelihood(vae, data, samples=20, compiled=each) for each in (False, True))
    assert compiled.mean == pytest.approx(plain.mean, rel=1e-6)


def test_a_part_of_a_set_speaks_for_the_whole_by_its_gap():
    vae, data, exact, _ = linear(n=2000)
    whole = metrics.evaluate(vae, data, samples=64)
    part = metrics.log_likelihood(vae, data.part(200), samples=500)
    found = metrics.numbers(part, whole, len(data))
    assert found["log_likelihood"] == pytest.approx(exact.mean().item(), abs=3 * part.gap_stderr + 0.01)
    assert abs(part.mean - exact.mean()) > abs(found["log_likelihood"] - exact.mean())  # the plain mean of the part
    assert found["log_likelihood_stderr"] == pytest.approx(exact.std().item() / math.sqrt(2000), rel=0.15)
    assert found["log_likelihood_examples"] == 200
    everything = metrics.numbers(metrics.log_likelihood(vae, data, samples=5), whole, len(data))
    assert everything["log_likelihood_examples"] == 2000


@pytest.mark.parametrize(("gap", "gain"), [("small", 3.0), ("follows log p(x)", 3.0), ("wild", 0.9)])
def test_the_error_of_a_part_is_what_it_says_whatever_the_gap(gap, gain):
    """200 examples of 5,000: at least `gain` times as exact as their plain mean, and covered by the error told."""
    draw = torch.Generator().manual_seed(0)
    errors, told, plain = [], [], []
    for _ in range(200):
        total, noise = (torch.randn(5000, generator=draw, dtype=torch.float64) * scale for scale in (15.0, 1.0))
        gaps = {
            "small": 2 + 0.5 * noise,
            "follows log p(x)": 200 - 0.5 * total + 3 * noise,
            "wild": (6 + 2 * noise).exp(),
        }
        elbo = total - gaps[gap]
        some = torch.randperm(5000, generator=draw)[:200]
        part = metrics.LogLikelihood(total[some], elbo[some], torch.ones(200), {}, 128)
        found = metrics.numbers(part, known_elbo(elbo), 5000)
        errors.append(found["log_likelihood"])
        told.append(found["log_likelihood_stderr"])
        plain.append(part.mean)
    errors, told, plain = map(torch.tensor, (errors, told, plain))
    assert ((errors.abs() < 1.96 * told).double().mean() - 0.95).abs() < 0.05
    assert plain.square().mean().sqrt() > gain * errors.square().mean().sqrt()


def known_elbo(elbo):
    """The evaluation of a set whose ELBOs are known."""
    mean, error = elbo.mean().item(), elbo.std().item() / math.sqrt(len(elbo))
    return metrics.Evaluation(mean, mean, 0.0, 0, torch.zeros(1), ((1, 1),), error)


def test_a_badly_trained_model_spoils_no_log_likelihood_of_a_part():
    """Its ELBO is some −10⁵ ± 10⁶ where log p(x) is −50: the plain gap rule is off by more than a thousand nats."""
    draw = torch.Generator().manual_seed(1)
    total, noise = (torch.randn(2000, generator=draw, dtype=torch.float64) for _ in range(2))
    total = 10 * total - 50
    elbo = total - (9 + 3 * noise).exp()
    part = metrics.LogLikelihood(total[:200], elbo[:200], torch.ones(200), {}, 128)
    found = metrics.numbers(part, known_elbo(elbo), 2000)
    assert abs(elbo.mean() + part.gap.mean() + 50) > 1000
    assert found["log_likelihood"] == pytest.approx(total.mean().item(), abs=3 * found["log_likelihood_stderr"])
    assert found["log_likelihood_stderr"] < 1.0
    elbo[3] = -math.inf  # the ELBO of one example overflowed
    part = metrics.LogLikelihood(total[:200], elbo[:200], torch.ones(200), {}, 128)
    found = metrics.numbers(part, known_elbo(elbo), 2000)
    assert (found["log_likelihood"], found["log_likelihood_stderr"]) == (part.mean, part.stderr)


def test_few_examples_are_validated_by_many_draws_and_many_by_one():
    """What is chosen by rests on 4,000 draws, unless the pictures are large: then a draw for each example may do."""
    vae, data, *_ = linear(n=180)
    assert [metrics.enough_draws(vae, data.part(n)) for n in (180, 7, 1)] == [23, 572, 4000]
    assert metrics.enough_draws(vae, resident(torch.zeros(5000, 5))) == 1
    assert metrics.enough_draws(vae, resident(torch.zeros(5000, 5)), least=8) == 8
    vae.shape = (3, 512, 512)
    assert metrics.enough_draws(vae, data) == 1


def test_a_validation_of_few_examples_is_no_constant_away_from_the_truth():
    """Each validation has the same seed, so the noise of its draws is the same in every epoch: one draw is off."""
    vae, data, *_ = linear(n=60)
    truth = metrics.evaluate(vae, data, samples=5000, seed=9).elbo
    error = [metrics.evaluate(vae, data, samples=n).elbo - truth for n in (1, metrics.enough_draws(vae, data))]
    assert abs(error[1]) < 0.05 < abs(error[0])


def test_the_bound_that_weights_are_chosen_by_rests_on_as_many_draws():
    vae, data, *_ = linear(n=60)
    truth = metrics.log_likelihood(vae, data, samples=5000, seed=9).curve[5]
    chosen_by = metrics.score(part("objective", "iwae", samples=5), vae, data, None)
    error = [metrics.log_likelihood(vae, data, samples=5).mean - truth, chosen_by - truth]
    assert abs(error[1]) < 0.02 < abs(error[0])


def test_draws_beyond_the_memory_bound_are_decoded_one_part_after_another(monkeypatch):
    vae, data, *_ = linear(n=9)
    whole = metrics.evaluate(vae, data, samples=64, batch_size=64)
    with monkeypatch.context() as patched:
        decoded, decode = [], type(vae).decode_given

        def counted(self, z, c):
            decoded.append(z.shape[:-1].numel())
            return decode(self, z, c)

        patched.setattr(type(vae), "decode_given", counted)
        parts_ = metrics.evaluate(vae, data, samples=64, batch_size=10)
    assert (max(decoded), sum(decoded)) == (10, 9 * 64)
    assert parts_.elbo == pytest.approx(whole.elbo, abs=0.3)
    assert parts_.kl == pytest.approx(whole.kl, rel=1e-6)
    assert parts_.elbo_stderr == pytest.approx(whole.elbo_stderr, rel=0.1)


def test_the_gap_splits_into_what_the_encoder_and_what_the_family_cost():
    """A factorised q of correlated dimensions: the best one leaves a gap that is known, and optimising finds it."""
    vae, data, _, (w, _, noise) = linear(n=40)
    with torch.no_grad():
        vae.model.readout.weight.copy_(2.0 * vae.model.readout.weight)
    precision = torch.eye(2, dtype=torch.float64) + 4 * w.T @ w / noise**2
    family = 0.5 * (precision.diagonal().log().sum() - precision.logdet())  # KL(best factorised ‖ true posterior)
    found = amortisation(vae, data, samples=5000, draws=20)
    assert found["approximation_gap"] == pytest.approx(family.item(), abs=0.03)
    assert found["amortisation_gap"] > 0.1
    perfect(vae, 2 * w, vae.model.readout.bias.detach().double(), noise)
    found = amortisation(vae, data, samples=2000, draws=20)
    assert abs(found["amortisation_gap"]) < 0.02
    assert abs(found["approximation_gap"]) < 0.02
    assert all(p.requires_grad and p.grad is None for p in vae.parameters())


@pytest.mark.parametrize("posterior", ["gaussian", "full_gaussian"])
def test_the_aggregate_posterior_of_well_separated_codes(posterior):
    """N far-apart narrow posteriors: I(x;z) is log N."""
    vae = parts.build(
        configure("model=linear", "likelihood=gaussian", "model.latent_dim=2", f"posterior={posterior}"),
        spec := _spec((2,)),
    )
    assert spec.shape == (2,)
    head = vae.latent.posterior.head
    with torch.no_grad():
        head.weight.zero_()
        head.weight[:2] = 100.0 * torch.eye(2)
        head.bias.zero_()
        head.bias[2:4] = -2.0
    grid = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0))
    found = metrics.aggregate(vae, resident(grid))
    n = 400 if posterior == "gaussian" else MOST // 8  # densities are dearer there
    assert found["mutual_information"] == pytest.approx(math.log(n), abs=1e-3)
    assert found["mutual_information_bound"] == pytest.approx(math.log(n))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
    found = metrics.aggregate(vae, resident(grid))
    assert found["mutual_information"] == pytest.approx(0.0, abs=1e-5)
    assert found["marginal_kl"] == pytest.approx(0.0, abs=1e-5)


def _spec(shape):
    return Spec(shape=shape, levels=None, low=0.0, high=1.0)


def factors_and_codes(mix):
    rng = np.random.default_rng(0)
    v = rng.integers(0, 5, (2000, 3))
    z = (v + 0.01 * rng.normal(size=v.shape)) @ mix + 0.01 * rng.normal(size=(2000, mix.shape[1]))
    return z, v


def test_disentanglement_is_perfect_for_factors_themselves_and_low_for_rotated_ones():
    straight = np.concatenate([np.eye(3), np.zeros((3, 2))], axis=1)
    z, v = factors_and_codes(straight)
    assert metrics.mutual_information_gap(z, v) > 0.95
    found = metrics.dci((z[:1000], v[:1000]), (z[1000:], v[1000:]))
    assert min(found.values()) > 0.95
    mixed = np.eye(3) - 2.0 / 3.0  # a reflection: every code holds every factor
    z, v = factors_and_codes(mixed)
    assert metrics.mutual_information_gap(z, v) < 0.3
    found = metrics.dci((z[:1000], v[:1000]), (z[1000:], v[1000:]))
    assert found["dci_disentanglement"] < 0.5
    assert found["dci_informativeness"] > 0.5


def test_factors_are_discrete_by_the_reference_alone():
    y = torch.stack([torch.arange(100) % 3, torch.linspace(0, 1, 100), torch.full((100,), 7.0)], dim=1)
    v = metrics.factors(y, y)
    assert v.shape == (100, 2)  # what does not vary is no factor
    assert set(v[:, 0]) == {0, 1, 2}
    assert np.bincount(v[:, 1]).tolist() == [5] * 20
    part = metrics.factors(y[5:50:7], y)
    np.testing.assert_array_equal(part, v[5:50:7])
    many = torch.arange(40.0).repeat(3).unsqueeze(1)  # whole numbers stay as they are, however many
    assert len(np.unique(metrics.factors(many, many))) == 40


def test_dimensions_that_are_dead_stay_dead_where_the_mean_is_monte_carlo():
    vae = parts.build(configure("posterior=flow", "model.hidden=[8]"), _spec((6,)))
    with torch.no_grad():
        vae.latent.posterior.head.weight.zero_()
        vae.latent.posterior.head.bias.zero_()
    found = metrics.evaluate(vae, resident(torch.rand(2000, 6).round()))
    assert found.kl == pytest.approx(0.0, abs=1e-6)
    assert found.active_units == 0


def test_a_linear_probe_reads_what_is_linear():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(600, 4))
    y = torch.from_numpy((z[:, 0] > 0).astype(int))
    assert metrics.linear_probe((z[:400], y[:400]), (z[400:], y[400:]))["probe_accuracy"] > 0.95
    a = torch.from_numpy(z[:, :2] @ rng.normal(size=(2, 3)))
    assert metrics.linear_probe((z[:400], a[:400]), (z[400:], a[400:]))["probe_r2"] > 0.99


def test_the_frechet_distance_of_gaussians_is_that_of_their_moments():
    torch.manual_seed(0)
    a = torch.randn(20_000, 4, dtype=torch.float64)
    b = 2.0 * torch.randn(20_000, 4, dtype=torch.float64) + 1.0
    assert frechet(a, b) == pytest.approx(4 * (1.0 + 1.0), rel=0.05)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-9)


def test_precision_and_recall_tell_what_is_missing():
    """Draws of one of two clusters are precise and recall half; draws of two and a far one the other way round."""
    torch.manual_seed(0)
    cluster = lambda centre: torch.randn(300, 2).double() * 0.3 + centre  # noqa: E731
    real = torch.cat([cluster(0.0), cluster(10.0)])
    precision, recall = precision_recall(real, torch.cat([cluster(0.0), cluster(0.0)]))
    assert precision > 0.9
    assert recall == pytest.approx(0.5, abs=0.05)
    precision, recall = precision_recall(real, torch.cat([cluster(0.0), cluster(10.0), cluster(50.0)]))
    assert precision == pytest.approx(2 / 3, abs=0.05)
    assert recall > 0.9


def test_every_kind_of_model_ends_with_a_log_likelihood(tmp_path):
    """At the end of training, above the ELBO, with its error, and named by what it is of."""
    for number, extra in enumerate(([], ["prior=vamp", "prior.components=5"], ["latent=ladder"], ["posterior=flow"])):
        folder = tmp_path / str(number)
        found = train(folder, *TINY, "trainer.steps=100", "trainer.log_likelihood_samples=300", *extra)
        assert found["test/log_likelihood"] > found["test/elbo"]
        assert found["test/posterior_gap"] > 0
        assert found["test/log_likelihood_stderr"] > 0
        assert found["measure"].startswith("log-mass of binary values")
        assert found["test/mutual_information"] <= found["test/mutual_information_bound"] + 1e-6
        assert ("test/kl_layer_1" in found) == ("latent=ladder" in extra)


def caveats_of(tmp_path, x, *overrides):
    np.save(tmp_path / "x.npy", x)
    data = parts.load_dataset(configure("data=arrays", f"data.path={tmp_path}/x.npy", *overrides))
    likelihood = parts.build(configure("likelihood=gaussian", "model.hidden=[8]"), data.spec).likelihood
    return metrics.caveats(data, likelihood)


def test_columns_of_a_table_that_a_density_grows_on_are_told(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    assert caveats_of(tmp_path, x, "likelihood=gaussian") == []
    x[:, 1], x[:, 3] = 7.0, np.arange(400) % 3
    for extra in ([], ["data.standardize=false"]):
        constant, few = caveats_of(tmp_path, x, "likelihood=gaussian", *extra)
        assert constant.startswith("columns 1 (1 in all, counted from 0) hold a single value")
        assert few.startswith("columns 3 (1 in all, counted from 0) hold at most 10 different values")
    assert not any("columns" in note for note in caveats_of(tmp_path, (x > 0).astype("uint8")))  # binary
    (few,) = caveats_of(tmp_path, np.stack([np.arange(400), np.arange(400) % 2], 1), "likelihood=gaussian")
    assert few.startswith("columns 1 (")


@pytest.mark.parametrize("likelihood", ["bernoulli", "categorical", "gaussian", "continuous_bernoulli"])
def test_an_elbo_that_a_model_is_not_needed_for_is_told(likelihood):
    config = configure(f"likelihood={likelihood}", "data.dequantize=" + str(likelihood == "gaussian").lower())
    data = parts.load_dataset(config)
    vae = parts.build(config, data.spec)
    test = data.resident("test", CPU)
    uniform = {"bernoulli": -64 * math.log(2), "categorical": -64 * math.log(17)}.get(likelihood, 0.0)

    def said(elbo):
        return metrics.worse_than_no_model(known_elbo(torch.full((9,), elbo)), "test", data.spec, vae.likelihood, test)

    assert said(uniform + 0.1) is None
    assert said(uniform - 0.1).startswith("test/elbo=")
    assert said(-1.3e15).endswith("nothing has been learned; train longer, lower optimizer.lr, or look at the data")


def test_a_table_is_no_better_explained_than_by_a_gaussian_for_each_column():
    x = 3.0 + 5.0 * torch.randn(4000, 2, dtype=torch.float64)
    nats = -2 * math.log(5.0) - math.log(2 * math.pi * math.e)
    mean, std = tuple(x.mean(0).tolist()), tuple(x.std(0).tolist())
    raw = Spec(shape=(2,), levels=None, low=-99.0, high=99.0)
    for spec, seen in ((raw, x), (replace(raw, mean=mean, std=std), (x - x.mean(0)) / x.std(0))):
        for elbo, worse in ((nats - 0.2, True), (nats + 0.2, False)):
            told = known_elbo(torch.full((9,), elbo))
            found = metrics.worse_than_no_model(told, "valid", spec, part("likelihood", "gaussian"), resident(seen))
            assert (found is not None) == worse


def test_the_final_numbers_can_do_without(tmp_path):
    found = train(tmp_path, *TINY, "trainer.log_likelihood_samples=0")
    assert "test/log_likelihood" not in found


def test_the_readout_can_start_at_the_mean_of_the_data():
    """Burda et al. 2016: the decoder's bias gives the training mean before anything is learned."""
    torch.manual_seed(0)
    spec = _spec((6,))
    vae = parts.build(configure("model.bias_from_data=true", "model.hidden=[8]"), spec)
    x = torch.bernoulli(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.0]).expand(2000, 6))
    vae.initialize(Batch(x))
    with torch.no_grad():
        vae.model.readout.weight.zero_()
        mean = vae.decode(torch.zeros(1, 20)).mean[0]
    torch.testing.assert_close(mean, x.mean(0).clamp(0.001, 0.999))
    other = parts.build(configure("model.bias_from_data=true", "likelihood=gaussian"), spec)
    with pytest.raises(UserError, match=r"model\.bias_from_data=true: .* bernoulli is allowed"):
        other.initialize(Batch(x))
