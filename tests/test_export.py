"""vae-export: what is written agrees with the model, for any batch."""

import json

import numpy as np
import pytest
import torch

import vae_cli
from tests.test_generate import finished
from vae_cli.commands.export import export
from vae_cli.config.check import check
from vae_cli.config.commands import Export
from vae_cli.system.errors import UserError

SHORT = ["trainer.steps=20", "trainer.log_likelihood_samples=0"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    np.savez(root / "table.npz", x=(50 + 9 * rng.normal(size=(300, 4))).astype("float32"))
    table = ["data=arrays", f"data.path={root}/table.npz", "likelihood=gaussian", "posterior=full_gaussian"]
    conv = ["model=conv", "model.channels=[4,8]", "conditional=label"]
    return {
        "conv": finished(root / "conv", *SHORT, *conv),
        "table": finished(root / "table", *SHORT, *table, "model.latent_dim=3"),
        "flow": finished(root / "flow", *SHORT, "posterior=flow"),
        "ladder": finished(root / "ladder", *SHORT, "model=ladder"),
    }


def settings(folder, form, output=None):
    return check(Export, {"run": str(folder), "format": form, "output": output, "trust": False}, "")


def expectations(model, folder, n):
    x, y = vae_cli.load_data(folder)
    x, y = x[:n], y[:n] if model.conditional else None
    q = model.encode(x, y)
    return x, y, q, model.decode(q.mean, y).mean


def told(found, name):
    """Hold what a file says of itself against the run that it is of."""
    about = {key: json.loads(value) for key, value in found.items() if key not in ("config", "data", "format")}
    assert about["vae_cli"] == vae_cli.__version__
    assert (about["shape"], about["latent_dim"]) == {"conv": ([8, 8], 20), "table": ([4], 3), "flow": ([8, 8], 20)}[
        name
    ]
    assert about["classes"] == ([str(k) for k in range(10)] if name == "conv" else None)
    low, high = about["range"]
    assert (low, high) == (0.0, 1.0) if name != "table" else 0 < low < 40 and 60 < high < 110


@pytest.mark.parametrize("name", ["conv", "table"])
@pytest.mark.parametrize("n", [1, 7])
def test_onnx_agrees_with_the_model(folders, name, n, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    encoder, decoder = export(settings(folders[name], "onnx", str(tmp_path / "out")))
    for path in (encoder, decoder):
        told(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map, name)
    model = vae_cli.load(folders[name], device="cpu")
    x, y, q, mean = expectations(model, folders[name], n)
    labels = {} if y is None else {"y": y.numpy()}
    loc, scale = onnxruntime.InferenceSession(encoder).run(None, {"x": x.numpy(), **labels})
    np.testing.assert_allclose(loc, q.mean, atol=1e-4)
    np.testing.assert_allclose(scale, q.stddev, atol=1e-4)
    (made,) = onnxruntime.InferenceSession(decoder).run(None, {"z": loc, **labels})
    np.testing.assert_allclose(made, mean, atol=1e-4, rtol=1e-5)


def test_a_torch_program_agrees_with_the_model(folders, tmp_path):
    encoder, decoder = export(settings(folders["conv"], "torch", str(tmp_path / "out")))
    content = {"about.json": ""}
    torch.export.load(encoder, extra_files=content)
    told(json.loads(content["about.json"]), "conv")
    model = vae_cli.load(folders["conv"], device="cpu")
    x, y, q, mean = expectations(model, folders["conv"], 5)
    loc, _ = torch.export.load(encoder).module()(x, y)
    torch.testing.assert_close(loc, q.mean)
    torch.testing.assert_close(torch.export.load(decoder).module()(loc, y), mean)


def test_safetensors_hold_weights_and_settings_alone(folders, tmp_path):
    safetensors = pytest.importorskip("safetensors")
    (path,) = export(settings(folders["flow"], "safetensors", str(tmp_path / "out")))
    model = vae_cli.load(folders["flow"], device="cpu")
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == set(model.vae.state_dict())
        assert json.loads(file.metadata()["config"]) == model.config.plain
        told(file.metadata(), "flow")
        for name, value in model.vae.state_dict().items():
            torch.testing.assert_close(file.get_tensor(name), value)


@pytest.mark.parametrize("name", ["flow", "ladder"])
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(folders, name, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match="has no scale in closed form"):
        export(settings(folders[name], "onnx", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(folders, monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(UserError, match=r"pip install 'vae-cli\[export\]'"):
        export(settings(folders["conv"], "safetensors", str(tmp_path / "out")))
