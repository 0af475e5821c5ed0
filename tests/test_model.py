import pytest
import torch
from torch import nn

from tests.build import part, vae
from vae_cli.batch import Batch
from vae_cli.model.layers import ACTIVATIONS, ConvTranspose
from vae_cli.system.errors import UserError

MODELS = ("mlp", "linear", "conv", "resnet")
PICTURES = [(28, 20), (8, 8), (3, 32, 32), (3, 64, 64), (1, 7, 13), (2, 5, 4), (4, 4)]


def build(name, shape, condition_dim=0, outputs=2, **settings):
    facts = {"shape": shape, "latent_dim": 5, "condition_dim": condition_dim, "outputs": outputs}
    return part("model", name, **facts, **settings)


@pytest.mark.parametrize("shape", PICTURES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_the_output_has_exactly_the_shape_of_the_input(name, shape):
    model = build(name, shape)
    features = model.encode(torch.rand(3, *shape), None)
    assert features.shape == (3, model.features)
    assert model.decode(torch.randn(3, 5), None).shape == (3, 2, *shape)


@pytest.mark.parametrize("name", ["mlp", "linear"])
def test_dense_models_take_any_shape(name):
    for shape in ((7,), (2, 3, 4, 5)):
        assert build(name, shape).decode(torch.randn(3, 5), None).shape == (3, 2, *shape)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["mlp", "conv", "resnet"])
def test_every_activation_has_gradients_everywhere(name, activation):
    model = build(name, (8, 8), condition_dim=2, activation=activation)
    c = torch.randn(3, 2)
    loss = model.encode(torch.rand(3, 8, 8), c).square().sum() + model.decode(torch.randn(3, 5), c).square().sum()
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert sum(p.grad.abs().sum() for p in model.parameters()) > 0


@pytest.mark.parametrize("name", MODELS)
def test_the_condition_reaches_encoder_and_decoder(name):
    model, x, z = build(name, (8, 8), condition_dim=3), torch.rand(2, 8, 8), torch.randn(2, 5)
    one, other = torch.eye(3)[:2], torch.eye(3)[1:]
    assert (model.encode(x, one) - model.encode(x, other)).abs().max() > 1e-4
    assert (model.decode(z, one) - model.decode(z, other)).abs().max() > 1e-4


def test_label_planes_are_a_bias_for_each_channel():
    """What stands in for constant label planes is what a convolution over them computes, away from the border."""
    planes = torch.eye(3)[0].view(1, 3, 1, 1).expand(1, 3, 8, 8)
    kernel = torch.randn(4, 3, 4, 4)
    convolved = torch.nn.functional.conv2d(planes, kernel)
    torch.testing.assert_close(convolved, convolved[:, :, :1, :1].expand_as(convolved))


@pytest.mark.parametrize("name", ["conv", "resnet"])
def test_what_a_model_cannot_take_is_refused(name):
    with pytest.raises(UserError, match=rf"model={name}: data of shape \[7\]"):
        build(name, (7,))
    with pytest.raises(UserError, match=r"model\.channels: 4 stages would halve 8×8 .* at most 3"):
        build(name, (8, 8), channels=[4, 4, 4, 4])


def test_conditions():
    y = torch.tensor([2, 0])
    label = lambda **given: part("conditional", "label", **given)  # noqa: E731
    torch.testing.assert_close(label(classes=4)(y), 2.0 * torch.eye(4)[[2, 0]])
    attributes = torch.rand(2, 40)
    assert torch.equal(label(attributes=40)(attributes), attributes)
    learned = label(classes=4, embedding=7)
    assert learned(y).shape == (2, 7)
    torch.testing.assert_close(learned(y)[0], 2.0 * learned.map.weight[:, 2])
    assert part("conditional", "none")(y) is None
    with pytest.raises(UserError, match="conditional=label: the data have no labels"):
        label()
    with pytest.raises(UserError, match="has no effect, the data have one class alone"):
        label(classes=1)
    with pytest.raises(ValueError, match="needs labels"):
        learned(None)


def ladder(body, shape, activation):
    """A ladder of three layers of 3, 4 and 5 dimensions, the top first, over data with two attributes."""
    model = [f"model={body}", f"model.activation={activation}", "model.latent_dim=3", "conditional=label"]
    latent = ["latent=ladder", "latent.below=[5,4]", "latent.hidden=[12,8]", "latent.depth=2"]
    size = {"mlp": "model.hidden=[16]", "conv": "model.channels=[4]"}[body]
    return vae(*model, size, *latent, f"latent.activation={activation}", shape=shape, attributes=2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("body", "shape"), [("mlp", (7,)), ("conv", (3, 7, 13)), ("conv", (8, 8))])
def test_a_ladder_over_any_body_and_activation_learns_everywhere(body, shape, activation):
    model = ladder(body, shape, activation)
    x, y = torch.rand(6, *shape), torch.randn(6, 2)
    draw = model(Batch(x, y), samples=2).draw
    outputs = model.decode(draw.z, y).mean
    assert draw.z.shape == (2, 6, 12)
    assert outputs.shape == (2, 6, *shape)
    assert model.sample(6, y).shape == (6, *shape)
    assert draw.kl.shape == (6, 12)
    assert draw.layers == ((3, 3), (4, 4), (5, 5))
    (outputs.square().sum() + draw.kl.sum()).backward()
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in model.parameters())


@pytest.mark.parametrize("extra", [[], ["conditional=label"]])
@pytest.mark.parametrize(("name", "shape"), [("conv", (1, 13, 9)), ("resnet", (3, 16, 12))])
def test_a_code_on_a_grid_has_the_grid_of_the_last_stage_and_one_by_one_heads(name, shape, extra):
    overrides = [f"model={name}", "model.channels=[8,8]", "latent=spatial", "latent.channels=3", *extra]
    model = vae(*overrides, shape=shape, attributes=2)
    grid = model.model.on_features[1:]
    assert model.latent.layout.shapes == ((3, *grid),)
    x, y = torch.rand(4, *shape), torch.randn(4, 2)
    output = model(Batch(x, y), samples=2)
    assert output.z.shape == (2, 4, 3 * grid[0] * grid[1])
    assert output.kl.shape == (4, model.latent_dim)
    output.log_likelihood.sum().backward()
    assert all(p.grad is not None for p in model.model.parameters())
    head = [p for p in model.latent.posterior.head.parameters() if p.ndim > 1]
    assert [p.shape[2:] for p in head] == [(1, 1)]


def test_a_cell_of_a_code_on_a_grid_is_decoded_near_its_place():
    """Seen of a translation: moving one cell changes outputs about it alone."""
    model = vae("model=conv", "model.channels=[4,4]", "latent=spatial", "latent.channels=2", shape=(32, 32))
    z = torch.zeros(1, 2, 8, 8)
    moved = z.clone()
    moved[0, :, 0, 0] = 3.0
    change = (model.decode(moved.flatten(1)).mean - model.decode(z.flatten(1)).mean).abs()[0]
    assert change[:8, :8].max() > 1e-4
    assert change[16:, 16:].max() == 0.0


@pytest.mark.parametrize(("outputs", "extra"), [(1, 0), (3, 1), (4, (0, 1)), (5, 0)])
def test_the_faster_transposed_convolution_is_torchs_own(outputs, extra):
    ours = ConvTranspose(6, outputs, 4, stride=2, padding=1, output_padding=extra)
    plain = nn.ConvTranspose2d(6, outputs, 4, stride=2, padding=1, output_padding=extra)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(5, 6, 7, 8, requires_grad=True)
    found, wanted = ours(x), plain(x)
    torch.testing.assert_close(found, wanted)
    g = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, (x, *ours.parameters()), g),
        torch.autograd.grad(wanted, (x, *plain.parameters()), g),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_what_leaves_a_network_of_bfloat16_products_is_not_rounded(name):
    model = build(name, (8, 8))
    z = torch.randn(3, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.decode(z, None)
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float())
    torch.testing.assert_close(found, model.decode(z, None), atol=0.05, rtol=0.05)


def test_the_faster_transposed_convolution_leaves_vmap_to_torchs_own():
    layer = ConvTranspose(6, 1, 4, stride=2, padding=1)
    x = torch.randn(2, 5, 6, 7, 8)
    torch.testing.assert_close(torch.func.vmap(layer)(x), torch.stack([layer(each) for each in x]))
    assert layer(x[0][:0]).shape == (0, 1, 14, 16)
