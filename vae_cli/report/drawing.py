"""Pictures of examples for files: captioned grids and animations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vae_cli.data import Spec
from vae_cli.disk import whole
from vae_cli.report import figures, pictures


def grid(spec: Spec, rows: Sequence[Tensor], path: Path, title: str, names: Sequence[str] = ()) -> Path:
    """Write rows of examples [columns, *shape], in the data's own units, as one captioned picture."""
    x = _square([spec.standardize(row) for row in rows], spec)
    sideways = not pictures.is_picture(spec.shape)
    figures.picture(pictures.grid(x, spec), path, title, names, sideways=sideways)
    return path


def animation(spec: Spec, x: Tensor, path: Path, milliseconds: int = 80) -> Path:
    """Write examples [N, *shape] as an animated GIF that runs there and back."""
    return animation_of_rows(spec, [x], path, milliseconds)


def animation_of_rows(spec: Spec, rows: Sequence[Tensor], path: Path, milliseconds: int = 120) -> Path:
    """Write rows of examples [steps, *shape] as an animated GIF: a frame a step, the rows side by side."""
    from PIL import Image

    steps = torch.stack([spec.standardize(row) for row in rows], dim=1)  # [steps, rows, *shape]
    frames = [Image.fromarray(pictures.grid(step.unsqueeze(0), spec).numpy()) for step in steps]
    frames += frames[-2:0:-1]
    with whole(path) as partial:
        frames[0].save(partial, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return path


def _square(rows: Sequence[Tensor], spec: Spec) -> Tensor:
    """Stack rows of any length, [rows, columns, *shape], the short ones filled up with the lowest value."""
    columns = max(len(row) for row in rows)
    full = [torch.cat([r, torch.full((columns - len(r), *r.shape[1:]), spec.low, device=r.device)]) for r in rows]
    return torch.stack(full)
