"""likelihood=autoregressive: its masses, its draws, and what a person is shown of it."""

import math
import time
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import chisquare

import vae_cli
from tests.conftest import configure, train
from vae_cli import parts
from vae_cli.commands.export import export
from vae_cli.commands.generate import app
from vae_cli.config import PATHS, compose
from vae_cli.config.check import check
from vae_cli.config.commands import Export
from vae_cli.config.words import CONF
from vae_cli.data import Spec
from vae_cli.likelihood.autoregressive import Autoregressive
from vae_cli.system.errors import UserError

SMALL = ["likelihood=autoregressive", "likelihood.hidden=4", "likelihood.layers=2", "likelihood.context=3"]
TINY = ["data=synthetic", "data.n=200", "data.shape=[8,8]", "model.latent_dim=2", "trainer.steps=4", *SMALL]


def part(shape=(2, 2), levels=2, *, spread=3.0, **settings):
    """A likelihood in float64 whose weights are `spread` times the usual ones, so that pixels depend on each other."""
    found = Autoregressive(shape=shape, levels=levels, **{"hidden": 4, "layers": 2, "context": 3, **settings}).double()
    with torch.no_grad():
        for weight in found.parameters():
            weight.mul_(spread)
    return found


def every_picture(levels, pixels=4):
    """Every picture [L**4, 2, 2]."""
    return torch.tensor(list(product(range(levels), repeat=pixels))).double().view(-1, 2, 2) / (levels - 1)


@pytest.mark.parametrize("conditional", ["none", "label"])
@pytest.mark.parametrize("levels", [2, 3])
def test_masses_sum_to_one(levels, conditional):
    spec = Spec((2, 2), levels, 0.0, 1.0, ("zero", "one", "two"))
    vae = parts.build(configure(*SMALL, f"conditional={conditional}", "model.latent_dim=3"), spec).double()
    y = None if conditional == "none" else torch.tensor([0, 1, 2, 0, 1])
    p = vae.decode(3 * torch.randn(5, 3).double(), y)
    log_prob = p.log_prob(every_picture(levels).unsqueeze(1))
    assert log_prob.shape == (levels**4, 5)
    torch.testing.assert_close(log_prob.exp().sum(0), torch.ones(5).double(), atol=1e-9, rtol=0)


def logits_of_pixel(net, x, outputs, row, column):
    """The logits of one pixel of x [H, W], written out: every layer, tap by tap."""

    def convolved(layer, value, i, j):
        reach, total = layer.kernel_size[0] // 2, layer.bias.clone()
        for di, dj in product(range(-reach, reach + 1), repeat=2):
            before = di < 0 or (di == 0 and (dj < 0 or (dj == 0 and layer is not net.first)))
            if before and i + di >= 0 and 0 <= j + dj < x.shape[1]:
                total = total + layer.weight[:, :, di + reach, dj + reach] @ value(i + di, j + dj)
        return total

    def seen(k, i, j):
        return net.context[k].weight[:, :, 0, 0] @ outputs[:, i, j] + net.context[k].bias

    def hidden(k, i, j):
        below = (lambda a, b: x[a, b].view(1)) if k == 0 else (lambda a, b: hidden(k - 1, a, b))
        value, gate = (convolved([net.first, *net.body][k], below, i, j) + seen(k, i, j)).chunk(2)
        return value * gate.sigmoid() + (hidden(k - 1, i, j) if k else 0.0)

    return net.readout.weight[:, :, 0, 0] @ hidden(len(net.body), row, column) + net.readout.bias


@pytest.mark.parametrize("levels", [2, 3])
def test_log_prob_is_a_sum_over_pixels_written_out(levels):
    net = part((3, 3), levels, spread=2.0, layers=1).requires_grad_(False)
    outputs = torch.randn(1, 3, 3, 3).double()
    x = torch.randint(levels, (3, 3)).double() / (levels - 1)
    total = 0.0
    for row, column in product(range(3), repeat=2):
        logits = logits_of_pixel(net, x, outputs[0], row, column)
        masses = torch.stack([1 - logits[0].sigmoid(), logits[0].sigmoid()]) if levels == 2 else logits.softmax(0)
        total += math.log(masses[round(float(x[row, column]) * (levels - 1))])
    assert float(net(outputs, 2).log_prob(x[None])) == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("levels", [2, 3])
def test_draws_follow_the_masses(levels):
    n, net = 20_000, part(levels=levels)
    p = net(torch.randn(1, 3, 2, 2).double(), 2)
    x = p.sample((n,))[:, 0]
    digits = (x.flatten(1) * (levels - 1)).round().long()
    index = (digits * levels ** torch.arange(3, -1, -1)).sum(1)
    found = torch.bincount(index, minlength=levels**4).numpy()
    expected = n * p.log_prob(every_picture(levels).unsqueeze(1))[:, 0].exp().detach().numpy()
    often = expected >= 5  # rare pictures are counted together
    found, expected = (np.append(each[often], each[~often].sum()) for each in (found, expected))
    if expected[-1] < 5:
        found, expected = (np.append(each[:-2], each[-2:].sum()) for each in (found, expected))
    assert len(found) > 3
    assert chisquare(found, expected * n / expected.sum()).pvalue > 1e-3


def test_a_pixel_sees_all_pixels_before_it_and_none_after():
    net, x = part((4, 5)), torch.rand(1, 1, 4, 5).double().requires_grad_()
    logits = net.logits(x, net.seen(torch.randn(1, 3, 4, 5).double())).flatten()
    for i, each in enumerate(logits):
        (gradient,) = torch.autograd.grad(each, x, retain_graph=True)
        assert not gradient.flatten()[i:].any()
        row, column = divmod(i, 5)
        near = gradient[0, 0, max(0, row - 3) : row + 1, max(0, column - 3) : column + 1].flatten()[:-1]
        assert bool(near.all())


def test_every_decoder_output_is_seen():
    net, outputs = part((3, 3)), torch.randn(2, 3, 3, 3).double().requires_grad_()
    net(outputs, 2).log_prob(torch.ones(2, 3, 3).double()).sum().backward()
    assert bool(outputs.grad.all())
    apart = net(torch.randn(2, 3, 3, 3).double(), 2).log_prob(torch.ones(2, 3, 3).double())
    assert abs(float(apart.detach().diff())) > 1e-6


@pytest.mark.parametrize("shape", [(5, 4), (1, 5, 4)])
@pytest.mark.parametrize("levels", [2, 5])
def test_draws_see_what_log_prob_sees(shape, levels):
    """Each layer computed at one pixel alone gives the logits of a pass over the whole picture."""
    net, outputs = part(shape, levels, spread=2.0), torch.randn(3, 3, *shape).double()
    outputs = outputs[:, :, 0] if len(shape) == 3 else outputs
    logits = []
    net._drawn, drawn = (lambda each: (logits.append(each), drawn(each))[1]), net._drawn
    with torch.no_grad():
        x = net.draw(outputs)
        whole = net.logits(x, net.seen(outputs))
    torch.testing.assert_close(torch.stack(logits, -1), whole.flatten(2), atol=1e-9, rtol=0)
    assert len(x.unique()) == levels


def test_shapes_of_draws_and_densities():
    p = part((1, 4, 4))(torch.randn(6, 2, 3, 1, 4, 4).double(), 3)
    assert (p.batch_shape, p.event_shape) == ((6, 2), (1, 4, 4))
    assert p.sample((5,)).shape == (5, 6, 2, 1, 4, 4)
    assert p.log_prob(p.sample((5,))).shape == (5, 6, 2)
    assert p.log_prob(torch.zeros(2, 1, 4, 4).double()).shape == (6, 2)
    with pytest.raises(NotImplementedError, match="no mean in closed form; an estimate: sample"):
        _ = p.mean


@pytest.mark.parametrize(("binarize", "levels"), [("auto", 2), ("none", 17)])
def test_grey_pictures_become_binary_unless_they_are_to_stay(binarize, levels):
    config = configure("likelihood=autoregressive", f"data.binarize={binarize}", "data.limit=50")
    assert parts.load_dataset(config).spec.levels == levels
    assert parts.build(config, parts.load_dataset(config).spec).likelihood.levels == levels


def test_other_data_than_pictures_of_one_channel_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"^likelihood=autoregressive: data of shape \[3, 8, 8\]; .* are allowed$"):
        train(tmp_path / "run", *TINY, "data.shape=[3,8,8]")


def test_missing_values_are_refused_by_the_settings():
    with pytest.raises(UserError) as told:
        compose("data=arrays", "data.path=tests", "data.missing=observed", "likelihood=autoregressive")
    assert str(told.value) == (
        "likelihood=autoregressive: needs every pixel, since each is given those before it; "
        "data.missing=refused is allowed"
    )


def test_a_grid_of_64_digits_is_drawn_in_seconds():
    net = Autoregressive(shape=(28, 28), levels=2, hidden=16, layers=4, context=8)
    started = time.process_time()
    x = net(torch.randn(64, 8, 28, 28), 2).sample()
    assert x.shape == (64, 28, 28)
    assert time.process_time() - started < 20.0  # a pass for each pixel would take minutes


TINY_GREY = ["data=digits", "data.limit=200", "data.binarize=none", "trainer.steps=4", *SMALL]
TRAINED = {
    "accumulated": ["trainer.accumulate=2"],
    "averaged": ["trainer.ema=0.9"],
    "bf16": ["trainer.precision=bf16"],
    "labelled": ["conditional=label"],
    "iwae": ["objective=iwae", "objective.samples=3"],
    "dreg": ["objective=iwae", "objective.samples=3", "objective.gradient=dreg"],
    "beta_tc": ["objective=beta_tc"],
    "ladder": ["latent=ladder", "latent.below=[4]", "latent.hidden=[16]"],
    "spatial": ["latent=spatial", "model=conv", "latent.channels=2"],
}


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_with(name, tmp_path):
    summary = train(tmp_path / "run", *TINY, *TRAINED[name], "trainer.log_likelihood_samples=4")
    assert_finite(summary)


def test_it_trains_on_grey_levels(tmp_path):
    summary = train(tmp_path / "run", *TINY_GREY, "trainer.log_likelihood_samples=4")
    assert_finite(summary)
    assert -math.log(17) * 64 * 1.2 < summary["test/elbo"] < 0.0  # near that of uniform levels, before it has learned


def assert_finite(summary):
    assert math.isfinite(summary["test/elbo"])
    assert math.isfinite(summary["test/log_likelihood"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with labels."""
    folder = tmp_path_factory.mktemp("autoregressive") / "run"
    settings = [*TINY, "conditional=label", "trainer.device=cpu"]
    train(folder, *settings, drawn=True)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*settings).plain))
    return folder


def test_the_report_says_that_draws_are_shown(finished):
    page = (finished / "report.html").read_text()
    assert "draws of p(x|z) for draws of z from the prior" in page
    assert "means of p(x|z)" not in page


def test_samples_are_draws(finished):
    model = vae_cli.load(finished)
    x = model.sample(8, 0, mean=True)
    assert x.shape == (8, 8, 8)
    assert set(x.unique().tolist()) <= {0.0, 1.0}
    assert model.vae.sample(3, torch.zeros(3, dtype=torch.long)).shape == (3, 8, 8)


TASKS = {
    "sample": {"n": 3},
    "reconstruct": {"n": 4},
    "interpolate": {"indices": [0, 1], "steps": 3},
    "traverse": {"dimensions": 2, "steps": 3},
    "manifold": {"n": 3, "condition": 1},
    "transfer": {"n": 3},
    "encode": {},
    "anomaly": {"samples": 2, "n": 4},
}


def generate(run, task, output, **changes):
    """Run a task of vae-generate in this process."""
    own = yaml.safe_load(Path(CONF, "task", f"{task}.yaml").read_text())
    places = dict.fromkeys(PATHS)
    raw = {"run": str(run), "output": str(output), "data": places, "device": "cpu", "seed": 0, "trust": False}
    return app.generate(app.validate({**raw, "task": {**own, **changes}}))


@pytest.mark.parametrize("task", TASKS)
def test_tasks_show_draws(task, finished, tmp_path, capsys):
    paths = generate(finished, task, tmp_path / "made", **TASKS[task])
    for path in (each for each in paths if each.suffix == ".npz"):
        with np.load(path) as made:
            for name in {"x", "reconstruction", "transferred"} & set(made):
                assert set(np.unique(made[name])) <= {0.0, 1.0}
    said = capsys.readouterr().out.splitlines()
    assert sum("draws are shown" in line for line in said) == (task in ("sample", "reconstruct"))


def test_imputing_is_refused(finished, tmp_path):
    with pytest.raises(UserError, match=r"^task=impute: .* runs of another likelihood are allowed$"):
        generate(finished, "impute", tmp_path / "made")


def test_a_decoder_without_a_mean_is_not_exported(finished, tmp_path):
    settings = {"run": str(finished), "format": "torch", "output": str(tmp_path / "made"), "trust": False}
    with pytest.raises(
        UserError, match=r"^run=.*has no mean in closed form.*format=safetensors takes any weights$"
    ) as e:
        export(check(Export, settings, ""))
    assert "\n" not in str(e.value)
    weights = export(check(Export, {**settings, "format": "safetensors"}, ""))
    assert weights[0].is_file()
