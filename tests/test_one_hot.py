"""Classes as one-hot codes, and the shapes of codes."""

import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence

from tests.build import part, vae
from vae_cli.batch import Batch
from vae_cli.distribution import OneHot
from vae_cli.latent import Layout

SHAPES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), min_size=1, max_size=4).map(tuple)


@given(shapes=SHAPES, batch=st.lists(st.integers(1, 3), max_size=2))
@settings(max_examples=40, deadline=None)
def test_a_layout_flattens_and_unflattens_without_loss(shapes, batch):
    layout = Layout(shapes)
    layers = [torch.randn(*batch, *shape) for shape in shapes]
    z = layout.flatten(layers)
    assert z.shape == (*batch, layout.size)
    assert layout.size == sum(layout.sizes) == sum(math.prod(shape) for shape in shapes)
    assert all(torch.equal(a, b) for a, b in zip(layout.unflatten(z), layers, strict=True))
    assert torch.equal(layout.flatten(layout.unflatten(z)), z)


def codes(latents, classes):
    """Every code there is, [K^D, D · K]."""
    every = torch.tensor(list(product(range(classes), repeat=latents)))
    return F.one_hot(every, classes).double().flatten(1)


def one_hot(*batch, latents=3, classes=4, spread=2.0, temperature=None):
    logits = spread * torch.randn(*batch, latents, classes, dtype=torch.float64)
    return OneHot(logits, None if temperature is None else torch.tensor(temperature, dtype=torch.float64))


@pytest.mark.parametrize(("latents", "classes"), [(1, 2), (2, 3), (3, 4), (4, 2)])
def test_the_probabilities_of_all_codes_sum_to_one_and_give_moments_and_entropy(latents, classes):
    p, z = one_hot(5, latents=latents, classes=classes), codes(latents, classes)
    log_p = p.log_prob(z.unsqueeze(1))  # [codes, 5]
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5).double())
    mean = (log_p.exp().unsqueeze(-1) * z.unsqueeze(1)).sum(0)
    torch.testing.assert_close(p.mean, mean)
    torch.testing.assert_close(p.variance, mean - mean**2)  # z² = z
    torch.testing.assert_close(p.stddev, (mean - mean**2).sqrt())
    torch.testing.assert_close(p.entropy(), -(log_p.exp() * log_p).sum(0))
    torch.testing.assert_close(p.log_prob(p.mode), log_p.amax(0))


@pytest.mark.parametrize("kind", ["sample", "rsample"])
def test_draws_are_codes_and_have_the_moments(kind):
    p, n = one_hot(2, temperature=0.7), 40_000
    z = getattr(p, kind)((n,))
    assert z.shape == (n, 2, 12)
    torch.testing.assert_close(z.unflatten(-1, (3, 4)).amax(-1), torch.ones(n, 2, 3).double())
    torch.testing.assert_close(z.unflatten(-1, (3, 4)).sum(-1), torch.ones(n, 2, 3).double())
    assert ((z.mean(0) - p.mean).abs() < 5 * p.stddev / math.sqrt(n) + 1e-9).all()


def test_the_gradient_of_a_draw_is_that_of_its_relaxation():
    logits = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    tau, weights = torch.tensor(0.6, dtype=torch.float64), torch.randn(6, 6, dtype=torch.float64)
    torch.manual_seed(3)
    z = OneHot(logits, tau).rsample()
    torch.manual_seed(3)
    q = OneHot(logits, tau)
    noisy = q.logits + q._gumbel(())
    soft = (noisy / tau).softmax(-1).flatten(-2)
    assert torch.equal(z.detach().argmax(-1), (z.detach() == 1.0).double().argmax(-1))
    assert torch.equal(z.unflatten(-1, (2, 3)).argmax(-1), noisy.argmax(-1))
    found, wanted = (torch.autograd.grad((each * weights).sum(), logits)[0] for each in (z, soft))
    torch.testing.assert_close(found, wanted)
    assert found.abs().max() > 0
    assert not OneHot(logits, tau).sample().requires_grad


def test_without_a_temperature_there_is_no_gradient_and_a_sentence_says_so():
    p = one_hot(2)
    assert not p.has_rsample
    with pytest.raises(NotImplementedError, match="only with a temperature"):
        p.rsample()


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0])
def test_the_kl_to_uniform_classes_is_between_zero_and_log_k_for_each_latent(spread):
    q, p = one_hot(50, spread=spread), OneHot(torch.zeros(3, 4, dtype=torch.float64))
    kl, z = kl_divergence(q, p), codes(3, 4).unsqueeze(1)
    assert (kl >= -1e-12).all()
    assert (kl <= 3 * math.log(4) + 1e-12).all()
    torch.testing.assert_close(kl, (q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))).sum(0))
    torch.testing.assert_close(kl, 3 * math.log(4) - q.entropy())


def test_an_expanded_distribution_is_the_same_one_many_times():
    p, z = one_hot(3, temperature=0.5), codes(3, 4)[:7].unsqueeze(1)
    more = p.expand((5, 3))
    assert (more.batch_shape, more.event_shape, more.sample().shape) == ((5, 3), (12,), (5, 3, 12))
    assert more.has_rsample
    torch.testing.assert_close(more.entropy(), p.entropy().expand(5, 3))
    torch.testing.assert_close(more.log_prob(z.unsqueeze(1)), p.log_prob(z).unsqueeze(1).expand(7, 5, 3))


@pytest.mark.parametrize("learned", ["false", "true"])
def test_codes_cost_their_kl_column_by_column(learned):
    model = vae("latent=codes", "latent.classes=5", "model.latent_dim=4", f"prior.learned={learned}").eval()
    output = model(Batch(torch.rand(9, 6).round()), samples=3)
    assert output.z.shape == (3, 9, 20)
    assert output.draw.layers == ((4, 4),)
    torch.testing.assert_close(output.kl.sum(-1), kl_divergence(output.draw.q, output.draw.p))
    assert (output.kl <= math.log(5) + 1e-5).all()  # the prior starts uniform
    assert set(output.z.detach().unique().tolist()) <= {0.0, 1.0}
    assert (len(list(model.latent.prior.parameters())) == 1) == (learned == "true")


def test_the_temperature_falls_geometrically_and_stays():
    head = lambda outputs, extra: torch.nn.Linear(3, 6)  # noqa: E731
    facts = {"head": head, "latent_dim": 2, "classes": 3}
    q = part("posterior", "categorical", **facts, temperature=2.0, final_temperature=0.5, annealing=4.0)
    assert [q.temperature(epoch) for epoch in (0.0, 2.0, 4.0, 9.0)] == pytest.approx([2.0, 1.0, 0.5, 0.5])
    q.at_epoch(2.0)
    assert q(torch.zeros(1, 3)).temperature.item() == pytest.approx(1.0)
