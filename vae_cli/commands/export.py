"""vae-export: encoder and decoder of a finished run, for other programs. torch is imported late."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_cli import __version__
from vae_cli.commands.shared import exit_on_error, import_torch, new_folder, own_folders, run_hydra
from vae_cli.config import require_run, words
from vae_cli.config.check import check
from vae_cli.config.commands import Export
from vae_cli.config.words import CONF
from vae_cli.system.disk import whole, write
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.output import say

if TYPE_CHECKING:
    import torch

    from vae_cli.api import Trained

TOLERANCE = 1e-4  # between an exported module and the model


def main() -> None:
    """Run vae-export; print errors as one line and exit with 1."""
    words.use("export")
    run_hydra("vae-export", application)


@hydra.main(version_base="1.3", config_path=CONF, config_name="export")
def application(composed: DictConfig) -> None:
    """Export what the settings say, and print the paths of what was written."""
    with exit_on_error("vae-export"):
        settings = check(Export, OmegaConf.to_container(composed, resolve=True, throw_on_missing=True), "")
        require_run(Path(settings.run))  # before torch is imported
        own_folders()
        import_torch()
        for path in export(settings):
            say(os.path.relpath(path))


def export(settings: Export) -> list[Path]:
    """Export a run and return the paths of what was written.

    Raises:
        UserError: a package is missing, or the model cannot be exported.
    """
    from vae_cli.api import load

    model = load(settings.run, device="cpu", trust=settings.trust)
    write = {"onnx": _onnx, "torch": _torch, "safetensors": _safetensors}[settings.format]
    usual = Path(settings.run) / "exported" / settings.format
    with new_folder(usual, settings.output) as folder:
        try:
            return write(model, folder)
        except ImportError as error:
            missing = (error.name or "").partition(".")[0]
            raise UserError(f"format={settings.format}: needs {missing}; pip install 'vae-cli[export]'") from error


def _parts(model: Trained) -> dict[str, tuple[torch.nn.Module, tuple[torch.Tensor, ...], list[str], list[str]]]:
    """Return encoder and decoder with example inputs and the names of their inputs and outputs.

    Raises:
        UserError: q(z|x) has no mean and scale, or p(x|z) no mean, in closed form.
    """
    import torch

    from vae_cli.commands.exported import Decoder, Encoder

    x, z = torch.zeros(3, *model.vae.shape), torch.zeros(3, *model.code_shape)
    labels: tuple[torch.Tensor, ...] = ()
    if model.conditional:
        attributes = model.spec.attributes
        labels = (torch.zeros(3, dtype=torch.int64) if model.spec.classes else torch.zeros(3, attributes or 1),)
    try:
        _ = model.encode(x, *labels).stddev
    except (NotImplementedError, AttributeError):
        kind = type(model.vae.latent.posterior).__name__
        raise UserError(
            f"run={model.folder}: its posterior ({kind}) has no scale in closed form; gaussian and full_gaussian "
            "of one stochastic layer can be exported, and format=safetensors takes any weights"
        ) from None
    if model.vae.likelihood.display == "draw":
        raise UserError(
            f"run={model.folder}: its p(x|z) has no mean in closed form that a decoder could give; format=safetensors "
            "takes any weights"
        )
    names = ["y"] if labels else []
    return {
        "encoder": (Encoder(model).eval(), (x, *labels), ["x", *names], ["mean", "scale"]),
        "decoder": (Decoder(model).eval(), (z, *labels), ["z", *names], ["mean"]),
    }


def _programs(model: Trained) -> dict[str, Any]:
    import torch

    batch = torch.export.Dim("batch", min=1)
    programs = {}
    for name, (module, inputs, *_) in _parts(model).items():
        dynamic = tuple({0: batch} for _ in inputs)
        try:
            programs[name] = torch.export.export(module, inputs, dynamic_shapes={"inputs": dynamic})
        except Exception as error:
            raise UserError(f"run={model.folder}: its {name} cannot be traced ({first_line(error)})") from error
    return programs


def _torch(model: Trained, folder: Path) -> list[Path]:
    """Write programs that `torch.export.load` reads."""
    import torch

    paths = []
    for name, program in _programs(model).items():
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={"about.json": json.dumps(_about(model))})
        paths.append(write(folder / f"{name}.pt2", file.getvalue()))
    return paths


def _about(model: Trained) -> dict[str, str]:
    """Return what another program must know beside the numbers, as JSON texts; the range is of x in its own units."""
    import torch

    spec = model.spec
    low, high = (spec.restore(torch.full(model.vae.shape, bound)) for bound in (spec.low, spec.high))
    facts = {
        "vae_cli": __version__,
        "shape": list(model.vae.shape),
        "latent_dim": model.latent_dim,
        "latent_shape": list(model.code_shape),
        "range": [float(low.min()), float(high.max())],
        "classes": list(spec.names) if spec.names and model.conditional else None,
    }
    return {key: json.dumps(value) for key, value in facts.items()}


def _onnx(model: Trained, folder: Path) -> list[Path]:
    """Write ONNX files with what `_about` says in their metadata, and hold each against the model under onnxruntime."""
    import onnxruntime
    import onnxscript  # noqa: F401  the exporter needs it
    import torch

    paths = []
    programs = _programs(model)
    for name, (module, inputs, takes, gives) in _parts(model).items():
        path = folder / f"{name}.onnx"
        made = torch.onnx.export(programs[name], (), input_names=takes, output_names=gives, dynamo=True, verbose=False)
        assert made is not None
        made.model.metadata_props.update(_about(model))
        with whole(path) as partial:
            made.save(partial, external_data=False)
            session = onnxruntime.InferenceSession(partial, providers=["CPUExecutionProvider"])
            _hold_against(session, module, inputs, name)
        paths.append(path)
    return paths


def _hold_against(session: Any, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str) -> None:
    """Compare an ONNX session with the module it came from, for a batch of another size than it was traced with.

    Raises:
        UserError: they differ.
    """
    import torch

    torch.manual_seed(0)
    given = [torch.rand(5, *t.shape[1:]).round() if t.is_floating_point() else t[:1].repeat(5) for t in inputs]
    names = [each.name for each in session.get_inputs()]
    found = session.run(None, {key: value.numpy() for key, value in zip(names, given, strict=True)})
    with torch.no_grad():
        expected = module(*given)
    expected = expected if isinstance(expected, tuple) else (expected,)
    worst = max(float((torch.from_numpy(a) - b).abs().max()) for a, b in zip(found, expected, strict=True))
    scale = max(1.0, *(float(b.abs().max()) for b in expected))
    if worst > TOLERANCE * scale:
        raise UserError(f"format=onnx: the exported {name} differs from the model by {worst:g}")


def _safetensors(model: Trained, folder: Path) -> list[Path]:
    """Write the weights alone, with settings and data description as text in the file's own header."""
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in model.vae.state_dict().items()}
    own = {"config": json.dumps(model.config.plain), "data": json.dumps(model.spec.to_dict()), "format": "pt"}
    return [write(folder / "model.safetensors", save(weights, metadata=own | _about(model)))]


if __name__ == "__main__":
    main()
