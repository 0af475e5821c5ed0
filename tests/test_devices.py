"""The same on an accelerator, where there is one."""

import json
import math

import pytest
import torch

from tests.conftest import TINY, configure, train
from vae_cli.report import Reporter
from vae_cli.system import checkpoint
from vae_cli.training import pace, run
from vae_cli.training.trainer import Trainer

HERE = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
DEVICES = [
    pytest.param(name, marks=pytest.mark.skipif(not present, reason=f"no {name} here"))
    for name, present in HERE.items()
]
SHORT = [*TINY, "trainer.steps=16", "trainer.log_every=4", "trainer.batch_size=32", "trainer.checkpoint_every=8"]
PARTS = [
    ["model=conv"],
    ["model=resnet", "conditional=label"],
    ["likelihood=gaussian", "data.dequantize=true"],
    ["likelihood=gaussian", "likelihood.scale=optimal", "trainer.ema=0.9"],
    ["likelihood=discretized_logistic", "likelihood.mixtures=3"],
    ["likelihood=categorical"],
    ["likelihood=continuous_bernoulli", "trainer.precision=bf16"],
    ["kl=capacity", "trainer.grad_clip=1.0", "objective.samples=3"],
    ["objective=mmd", "prior=vamp", "prior.components=4"],
    ["latent=ladder", "trainer.precision=bf16"],
    ["model=conv", "latent=spatial"],
    ["latent=codes"],
    ["likelihood=autoregressive", "model=conv"],
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parts", PARTS, ids=" ".join)
def test_parts_train_on_the_device(tmp_path, device, parts):
    summary = train(tmp_path, *SHORT, *parts, f"trainer.device={device}")
    assert all(math.isfinite(value) for key, value in summary.items() if "/" in key)


@pytest.mark.parametrize("device", DEVICES)
def test_training_draws_are_left_alone_by_watching(tmp_path, device, monkeypatch):
    monkeypatch.setattr(pace, "PICTURE_BUDGET", math.inf)
    watched = ["trainer.validate_every=0.2", "trainer.deterministic=true", f"trainer.device={device}"]
    train(tmp_path / "often", *SHORT, *watched)
    train(tmp_path / "never", *SHORT, *watched, "trainer.validate_every=100")
    often, never = (
        checkpoint.load(tmp_path / name / "checkpoints" / "last.pt")["model"] for name in ("often", "never")
    )
    assert all(torch.equal(often[key], never[key]) for key in often)
    torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no cuda here")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("graph", ["true", "false"])
def test_a_step_does_not_wait_for_the_device(tmp_path, monkeypatch, graph):
    """Any transfer or synchronisation between `_update` and its end is an error."""
    original = Trainer._update

    def update(self, index):
        if self.state.step < 6:  # kernels are still being loaded, and the graph captured
            return original(self, index)
        try:
            torch.cuda.set_sync_debug_mode("error")
            original(self, index)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Trainer, "_update", update)
    monkeypatch.setattr(Reporter, "figures", lambda *_: None)
    run.train(configure(*SHORT, "trainer.device=cuda", "kl=linear", f"trainer.cuda_graph={graph}"), tmp_path)


LIKELIHOODS = ("bernoulli", "continuous_bernoulli", "gaussian", "laplace", "discretized_logistic", "categorical")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no cuda here")
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_graph_gives_the_losses_of_the_eager_step(tmp_path, likelihood):
    common = [*TINY, "trainer.steps=50", "trainer.batch_size=32", "trainer.log_every=1", "trainer.device=cuda"]
    common += [f"likelihood={likelihood}", "trainer.ema=0.9", "lr_schedule=cosine", "kl=linear", "kl.warmup=3"]
    found = []
    for graph in ("true", "false"):
        train(tmp_path / graph, *common, f"trainer.cuda_graph={graph}")
        lines = map(json.loads, (tmp_path / graph / "metrics.jsonl").read_text().splitlines())
        found.append([line["train/loss"] for line in lines if "train/loss" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-4)
