import pytest
import torch
from torch import nn
from vae_cli.conditioning import Label, Unconditional
from vae_cli.model.ladder import Ladder

from vae_cli.model.conv import Conv
from vae_cli.model.layers import ACTIVATIONS, ConvTranspose
from vae_cli.model.linear import Linear
from vae_cli.model.mlp import MLP
from vae_cli.model.resnet import ResNet
from vae_cli.posterior import Gaussian
from vae_cli.prior import Standard
from vae_cli.system.errors import UserError

MODELS = {"mlp": MLP, "linear": Linear, "conv": Conv, "resnet": ResNet}
PICTURES = [(28, 20), (8, 8), (3, 32, 32), (3, 64, 64), (1, 7, 13), (2, 5, 4), (4, 4)]


def build(name, shape, condition_dim=0, outputs=2, **settings):
    return MODELS[name](shape=shape, latent_dim=5, condition_dim=condition_dim, outputs=outputs, **settings)


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
    torch.testing.assert_close(Label(classes=4, attributes=None)(y), 2.0 * torch.eye(4)[[2, 0]])
    attributes = torch.rand(2, 40)
    assert torch.equal(Label(classes=None, attributes=40)(attributes), attributes)
    learned = Label(classes=4, attributes=None, embedding=7)
    assert learned(y).shape == (2, 7)
    torch.testing.assert_close(learned(y)[0], 2.0 * learned.map.weight[:, 2])
    assert Unconditional()(y) is None
    with pytest.raises(UserError, match="conditional=label: the data have no labels"):
        Label(classes=None, attributes=None)
    with pytest.raises(UserError, match="has no effect, the data have one class alone"):
        Label(classes=1, attributes=None)
    with pytest.raises(ValueError, match="needs labels"):
        learned(None)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "channels"), [((7,), ()), ((3, 7, 13), (4, 6)), ((8, 8), (4,))])
def test_a_ladder_of_any_shape_and_activation_learns_everywhere(shape, channels, activation):
    settings = {"below": (5, 4), "hidden": (16, 12, 8), "depth": 2, "channels": channels, "activation": activation}
    model = Ladder(shape=shape, latent_dim=3, condition_dim=2, outputs=2, **settings)
    posterior, prior = model.hierarchy(Gaussian(features=model.features, latent_dim=3), Standard(latent_dim=3))
    x, c = torch.rand(6, *shape), torch.randn(6, 2)
    q, p = posterior(model.encode(x, c)), prior(c)
    z = q.rsample((2,))
    outputs = model.decode(z.flatten(0, 1), c.repeat(2, 1))
    assert z.shape == (2, 6, 12)
    assert outputs.shape == (12, 2, *shape)
    assert p.sample((6,)).shape == (6, 12)
    kl = torch.cat(q.kl_by_layer(p, z), dim=-1)
    assert kl.shape == (6, 12)
    (outputs.square().sum() + kl.sum()).backward()
    parameters = [*model.parameters(), *posterior.parameters()]
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in parameters)


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
