"""latent=spatial: codes that are pictures of their own, from training on MNIST to every tool that touches a code."""

import numpy as np
import pytest
import torch
from torch.distributions import kl_divergence

import vae_cli
from tests.conftest import configure, train
from tests.ordeals import curves, equal, weights
from tests.test_codes import drawn
from tests.test_generate import finished
from vae_cli import parts
from vae_cli.commands.export import export
from vae_cli.config.check import check
from vae_cli.config.commands import Export
from vae_cli.data import Spec
from vae_cli.report import kl_map
from vae_cli.system.errors import UserError

SHAPE = (4, 7, 7)
SPATIAL = ["latent=spatial", "latent.channels=4"]


@pytest.fixture(scope="module")
def mnist(mnist_root):
    return [
        "data=mnist", f"data.root={mnist_root}", "model=conv", "model.channels=[8,16]", *SPATIAL, "data.limit=300",
        "trainer.steps=20", "trainer.batch_size=32", "trainer.log_every=5", "trainer.log_likelihood_samples=2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory, mnist):
    return finished(tmp_path_factory.mktemp("spatial") / "run", *mnist)


@pytest.fixture(scope="module")
def model(run):
    return vae_cli.load(run, device="cpu")


def test_the_api_gives_and_takes_codes_in_their_own_shape(model):
    x = model.data()[0][:5]
    q = model.encode(x)
    assert (q.batch_shape, q.event_shape) == ((5,), SHAPE)
    assert q.rsample((2,)).shape == (2, 5, *SHAPE)
    assert q.expand((3, 5)).sample().shape == (3, 5, *SHAPE)
    flat = model.vae.encode(model.inputs.batch(x, None))
    for name in ("mean", "variance", "stddev", "mode"):
        assert torch.equal(getattr(q, name), getattr(flat, name).view(5, *SHAPE))
    z = q.sample()
    torch.testing.assert_close(q.log_prob(z), flat.log_prob(z.flatten(1)))
    torch.testing.assert_close(q.entropy(), flat.entropy())
    torch.testing.assert_close(kl_divergence(q, model.prior()), model.vae(model.inputs.batch(x, None)).kl.sum(-1))
    assert torch.equal(model.decode(z).mean, model.decode(z.flatten(1)).mean)
    assert model.decode(z[0]).mean.shape == (28, 28)
    assert model.decode(torch.randn(2, 3, *SHAPE)).batch_shape == (2, 3)
    with pytest.raises(
        ValueError, match=r"z has shape \[5, 7, 4, 7\]; \[\.\.\., 196\] or \[\.\.\., 4, 7, 7\] is allowed"
    ):
        model.decode(z.transpose(1, 2))


def test_a_code_keeps_its_places(model):
    """A code changed in one corner changes the picture there alone."""
    z = torch.zeros(1, *SHAPE)
    other = z.clone()
    other[..., 0, 0] = 3.0
    changed = (model.decode(z).mean != model.decode(other).mean)[0]
    assert changed[:4, :4].any()
    assert not changed[12:].any()
    assert not changed[:, 12:].any()


def test_a_run_goes_on_to_the_bit(tmp_path, mnist, run):
    train(tmp_path, *mnist, "trainer.steps=10")  # where the whole run validates as well
    train(tmp_path, *mnist, resume=True)
    assert equal(weights(tmp_path), weights(run))
    assert curves(tmp_path)["train/loss"] == curves(run)["train/loss"]


def test_the_tasks_work(model, tmp_path):
    found = drawn(model, tmp_path / "a", "encode")
    assert found["z"].shape == found["scale"].shape == (300, *SHAPE)
    np.savez(tmp_path / "codes.npz", z=found["z"][:7])
    assert drawn(model, tmp_path / "b", "decode", codes=f"{tmp_path}/codes.npz", means=True)["x"].shape == (7, 28, 28)
    np.savez(tmp_path / "wrong.npz", z=found["z"][:7, :3])
    with pytest.raises(UserError, match=r"shape \[7, 3, 7, 7\]; \[N, 196\] or \[N, 4, 7, 7\] with N ≥ 1 is allowed"):
        drawn(model, tmp_path / "c", "decode", codes=f"{tmp_path}/wrong.npz", means=True)
    walked = drawn(model, tmp_path / "d", "interpolate", indices=[0, 1, 2], steps=4, kind="spherical")
    assert walked["z"].shape == (2, 4, *SHAPE)
    assert walked["x"].shape == (2, 4, 28, 28)
    moved = drawn(model, tmp_path / "e", "traverse", index=0, dimensions=3, steps=5, range=2.5)
    assert moved["x"].shape == (3, 5, 28, 28)
    made = drawn(model, tmp_path / "f", "sample", n=6, condition=None, temperature=0.7, sampler="prior", means=True)
    assert made["z"].shape == (6, *SHAPE)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_exports_take_and_give_codes_in_their_own_shape(model, run, tmp_path, form):
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    settings = check(Export, {"run": str(run), "format": form, "output": str(tmp_path / "out"), "trust": False}, "")
    encoder, decoder = export(settings)
    x = model.data()[0][:6]
    q = model.encode(x)
    if form == "onnx":
        import onnxruntime

        first, second = (
            onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (encoder, decoder)
        )
        mean, scale = map(torch.from_numpy, first.run(None, {"x": x.numpy()}))
        again = torch.from_numpy(second.run(None, {"z": mean.numpy()})[0])
    else:
        first, second = (torch.export.load(path).module() for path in (encoder, decoder))
        mean, scale = first(x)
        again = second(mean)
    torch.testing.assert_close(mean, q.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scale, q.stddev, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, model.decode(q.mean).mean, atol=1e-4, rtol=1e-4)


def test_the_kl_is_shown_as_a_map(tmp_path, mnist):
    train(tmp_path, *mnist, "trainer.steps=2", drawn=True)
    assert (tmp_path / "figures" / "kl_map.png").stat().st_size > 5000
    page = (tmp_path / "report.html").read_text()
    assert "where in the code the information is" in page
    assert "196 latent dimensions (4 × 7 × 7)" in page


def test_the_map_holds_each_element_in_its_place():
    kl = torch.arange(24.0)
    found = kl_map.grid(kl, (2, 3, 4))
    assert found[1, 2, 3] == 23.0
    assert found[0, 1, 0] == 4.0
    assert kl_map.grid(kl, (24,)) is None
    assert kl_map.grid(torch.ones(1), (2, 3, 4)) is None  # a prior that does not factorise
    images = [axes.images[0].get_array() for axes in kl_map.draw(found, width=5.0).axes if axes.images]
    assert [image.max() for image in images] == [11.0, 23.0]


@pytest.mark.parametrize("prior", ["standard", "mixture", "vamp", "flow"])
@pytest.mark.parametrize("model", ["conv", "resnet"])
def test_every_prior_and_both_models_give_gradients(model, prior):
    spec = Spec(shape=(3, 12, 20), levels=2, low=0.0, high=1.0)
    few = {
        "mixture": ["prior.components=3"],
        "vamp": ["prior.components=3"],
        "flow": ["prior.transforms=1", "prior.hidden=[8]"],
    }
    chosen = configure(f"model={model}", *SPATIAL, "model.channels=[4,8]", f"prior={prior}", *few.get(prior, []))
    vae = parts.build(chosen, spec)
    shape = vae.latent.layout.shape
    assert shape[0] == 4
    assert 12 * shape[2] == 20 * shape[1]
    x = torch.rand(2, 3, 12, 20).round()
    output = vae(vae_cli.api.Batch(x), 2)
    assert output.z.shape == (2, 2, vae.latent_dim)
    (output.kl.sum() - output.log_likelihood.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.latent.parameters())
    assert vae.sample(3).shape == (3, 3, 12, 20)


@pytest.mark.parametrize(
    "overrides", [("model=mlp",), ("model=conv", "posterior=full_gaussian"), ("model=conv", "posterior=flow")]
)
def test_what_has_no_grid_is_refused_in_one_line(overrides):
    with pytest.raises(UserError, match="is allowed") as told:
        configure(*SPATIAL, *overrides)
    assert "\n" not in str(told.value)
