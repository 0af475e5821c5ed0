"""Fast paths give what the plain ones give."""

import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Distribution

from tests.build import part
from tests.conftest import TINY, configure, train
from vae_cli import parts
from vae_cli.data.batches.pixels import bernoulli
from vae_cli.data.batches.resident import Resident, Streamed, place
from vae_cli.likelihood.bernoulli import BernoulliElements
from vae_cli.optimizer import Adam, AdamW
from vae_cli.system.errors import UserError
from vae_cli.system.machine import usable_threads
from vae_cli.training.graph import captured
from vae_cli.training.step import Step

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(5, 6, 7), (3, 5, 6, 7)])
def test_the_fused_bernoulli_has_the_value_and_gradient_of_its_formula(shape):
    torch.manual_seed(0)
    x = torch.rand(5, 6, 7, dtype=torch.float64)
    logits = (8 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(shape[:-2], dtype=torch.float64)
    fused = BernoulliElements(logits, 2).log_prob(x)
    plain = (x * logits - F.softplus(logits)).flatten(-2).sum(-1)
    torch.testing.assert_close(fused, plain, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad((each * weights).sum(), logits)[0] for each in (fused, plain)]
    torch.testing.assert_close(*grads, rtol=1e-7, atol=1e-8)  # torch cuts its softplus at 20
    assert torch.autograd.gradcheck(
        lambda logits: BernoulliElements(logits, 2).log_prob(x), logits.detach().requires_grad_()
    )


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[-1e4, 1e4, -1e4, 1e4]], requires_grad=True)
    x = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    found = BernoulliElements(logits, 1).log_prob(x)
    assert found.item() == -2e4
    found.sum().backward()
    assert logits.grad.tolist() == [[0.0, 0.0, 1.0, -1.0]]


def test_the_gradient_in_x_is_kept_for_who_asks():
    x = torch.rand(2, 3, requires_grad=True)
    logits = torch.randn(2, 3)
    BernoulliElements(logits, 1).log_prob(x).sum().backward()
    torch.testing.assert_close(x.grad, logits)


@pytest.mark.parametrize(("ours", "theirs"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_adam_steps_as_torchs_own(ours, theirs):
    torch.manual_seed(0)
    start = [torch.randn(5, 4), torch.randn(3)]
    mine, own = ([p.clone().requires_grad_() for p in start] for _ in range(2))
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    a = ours([{"params": mine[:1]}, {"params": mine[1:], "lr": 3e-2}], fused=True, **settings)
    b = theirs([{"params": own[:1]}, {"params": own[1:], "lr": 3e-2}], fused=True, **settings)
    for k in range(30):
        for p, q in zip(mine, own, strict=True):
            gradient = None if k == 10 and p.ndim == 1 else torch.randn_like(p)
            p.grad, q.grad = gradient, None if gradient is None else gradient.clone()
        if k == 20:  # resumed: each goes on from the other's state
            state = a.state_dict()
            a.load_state_dict(b.state_dict())
            b.load_state_dict(state)
        for group in (*a.param_groups, *b.param_groups):
            group["lr"] *= 0.95
        a.step()
        b.step()
        assert all(torch.equal(p, q) for p, q in zip(mine, own, strict=True))


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("extra", [[], ["conditional=label", "likelihood=gaussian"], ["data.limit=150"]])
def test_streamed_examples_train_as_resident_ones_to_the_bit(tmp_path, extra):
    common = [*TINY, "trainer.steps=50", "trainer.batch_size=32", "trainer.log_every=1", *extra]
    train(tmp_path / "resident", *common, "trainer.resident=true")
    train(tmp_path / "streamed", *common, "trainer.resident=false")
    assert losses(tmp_path / "resident") == losses(tmp_path / "streamed")
    assert len(losses(tmp_path / "streamed")) == 50
    assert "data streamed" in (tmp_path / "streamed" / "train.log").read_text()
    assert "data streamed" not in (tmp_path / "resident" / "train.log").read_text()


def test_a_batch_that_was_prefetched_is_the_one_that_is_given():
    data = parts.load_dataset(configure(*TINY, "data.binarize=none"))
    streamed, resident = (data.resident("train", CPU, kind) for kind in (False, True))
    assert (type(streamed), type(resident)) == (Streamed, Resident)
    order = streamed.order(1, 0).split(16)
    for k, index in enumerate(order):
        if k + 1 < len(order) and k % 3:
            streamed.prefetch(order[k + 1])
        found, wanted = streamed.batch(index), resident.batch(index)
        assert torch.equal(found.x, wanted.x)
        assert torch.equal(found.y, wanted.y)


def test_on_the_cpu_examples_are_resident():
    data = parts.load_dataset(configure(*TINY))
    assert place(data.train, lambda x: x, CPU).resident


LIKELIHOODS = {
    "bernoulli": [], "continuous_bernoulli": [], "gaussian": [], "laplace": [], "discretized_logistic": [],
    "categorical": [],
}  # fmt: skip


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_step_equals_one_written_plainly(tmp_path, likelihood, monkeypatch):
    """50 steps of the loop against 50 of the objective, torch's own Adam and float formulas, to float tolerance."""
    common = [*TINY, "data.shape=[6,6]", "model.hidden=[32]", "trainer.steps=50", "trainer.batch_size=32"]
    common += ["trainer.log_every=1", "trainer.log_likelihood_samples=4", f"likelihood={likelihood}"]
    train(tmp_path / "fast", *common)
    plain = lambda self, x: super(BernoulliElements, self).log_prob(x)  # noqa: E731
    monkeypatch.setattr(BernoulliElements, "log_prob", plain)
    monkeypatch.setattr(Adam, "step", lambda self: torch.optim.Adam.step(self))
    train(tmp_path / "plain", *common)
    assert losses(tmp_path / "fast") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_a_number_goes_to_the_device_only_when_it_changes(monkeypatch):
    config = configure(*TINY)
    data = parts.load_dataset(config)
    vae = parts.build(config, data.spec)
    step = Step(
        vae=vae, objective=parts.assemble("objective", config.objective, latent_dim=4, examples=10),
        optimizer=part("optimizer", "adam", params=vae.parameters(), fused=True), kl=parts.assemble("kl", config.kl),
        data=data.resident("train", CPU), settings=config.trainer,
    )  # fmt: skip
    filled = []
    monkeypatch.setattr(
        Step, "_fill", lambda self, tensor, value, own=Step._fill: (filled.append(1), own(self, tensor, value))
    )
    fills = []
    original = torch.Tensor.fill_
    monkeypatch.setattr(torch.Tensor, "fill_", lambda self, value: (fills.append(value), original(self, value))[1])
    for _ in range(5):
        step(torch.arange(8), weight=0.5, target=None, lr=[1e-3], decay=0.0)
    assert fills == [0.5, 1.0]
    assert step.weight.item() == 0.5
    assert step.summed == 5


def test_the_discriminator_is_clipped_by_itself():
    config = configure(*TINY, "objective=factor", "trainer.grad_clip=0.001")
    data = parts.load_dataset(config)
    vae = parts.build(config, data.spec)
    objective = parts.assemble("objective", config.objective, latent_dim=4, examples=10)
    groups = [{"params": list(vae.parameters())}, *objective.groups()]
    step = Step(
        vae=vae, objective=objective, optimizer=part("optimizer", "adam", params=groups, fused=True),
        kl=parts.assemble("kl", config.kl), data=data.resident("train", CPU), settings=config.trainer,
    )  # fmt: skip
    step(torch.arange(8).view(1, 8), weight=1.0, target=None, lr=[1e-3, 1e-3], decay=0.0)
    for owner in (vae, objective):
        norm = torch.nn.utils.get_total_norm([p.grad for p in owner.parameters()]).item()
        assert norm == pytest.approx(0.001, rel=1e-3)
    assert step.grad_norm > 0.1  # the model's, before


@pytest.mark.parametrize("levels", [256, 16])
def test_dynamic_binarisation_draws_each_pixel_with_its_probability(levels):
    torch.manual_seed(0)
    grey = torch.arange(levels, dtype=torch.uint8).repeat(20_000, 1)
    found = bernoulli(grey, levels=levels)
    assert found.dtype == torch.float32
    assert set(found.unique().tolist()) == {0.0, 1.0}
    p = torch.arange(levels) / (levels - 1)
    error = (found.mean(0) - p).abs()
    assert (error <= 5 * (p * (1 - p) / 20_000).sqrt() + 2e-5).all()
    assert (found[:, 0] == 0).all()
    assert (found[:, -1] == 1).all()


def test_threads_are_those_granted(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr("vae_cli.system.machine.AT_START", 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr("vae_cli.system.machine.QUOTA", quota)
    assert usable_threads() == 16
    quota.write_text("max 100000\n")
    assert usable_threads() == 16
    quota.write_text("250000 100000\n")
    assert usable_threads() == 2
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert usable_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    assert usable_threads() == 64


def test_a_step_that_no_graph_can_hold_is_told(monkeypatch):
    """CUDA's part is played by stand-ins; tests/test_devices.py has the real one."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    before, seen = Distribution._validate_args, []

    def waits():
        seen.append(Distribution._validate_args)
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(UserError, match=r"trainer\.cuda_graph: the step cannot be captured.*false is allowed"):
        captured(waits)
    assert seen == [False]
    assert Distribution._validate_args == before
