"""Pictures of examples for files: captioned grids and animations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vae_cli.data import Spec
from vae_cli.report import figures, pictures, tables
from vae_cli.system.disk import whole

COLUMNS = 16  # examples side by side
ROWS = 32  # rows of a picture at most


def grid(spec: Spec, rows: Sequence[Tensor], path: Path, title: str, names: Sequence[str] = ()) -> Path:
    """Write rows of examples [columns, *shape], in the data's own units, as one captioned picture or heat map."""
    x = _square([spec.standardize(row) for row in rows], spec)
    if not pictures.is_picture(spec.shape):
        return figures.save(tables.heat_map(x, spec, title, names), path)
    figures.picture(pictures.grid(x, spec), path, title, names)
    return path


def pairs(spec: Spec, real: Tensor, made: Tensor, path: Path, title: str, names: tuple[str, str]) -> Path:
    """Write examples [N, *shape] and their reconstructions, in the data's own units: one above or against the other."""
    if not pictures.is_picture(spec.shape):
        return figures.save(tables.against(spec.standardize(real), spec.standardize(made), spec, title), path)
    both = zip(real.split(COLUMNS), made.split(COLUMNS), strict=True)
    rows = [part for pair in both for part in pair][:ROWS]
    return grid(spec, rows, path, title, (list(names) * ROWS)[: len(rows)])


def animation(spec: Spec, x: Tensor, path: Path, milliseconds: int = 80) -> Path:
    """Write examples [N, *shape] as an animated GIF that runs forth and back."""
    return animation_of_rows(spec, [x], path, milliseconds)


def animation_of_rows(spec: Spec, rows: Sequence[Tensor], path: Path, milliseconds: int = 120) -> Path:
    """Write rows of examples [steps, *shape] as an animated GIF: a frame a step, the rows side by side."""
    from PIL import Image

    steps = torch.stack([spec.standardize(row) for row in rows], dim=1)  # [steps, rows, *shape]
    frames = [Image.fromarray(_frame(step, spec).numpy()) for step in steps]
    frames += frames[-2:0:-1]
    with whole(path) as partial:
        frames[0].save(partial, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return path


def _frame(x: Tensor, spec: Spec) -> Tensor:
    """Return examples [N, *shape] side by side as one picture [H, W, 3]; those that are no pictures as a strip each."""
    if pictures.is_picture(spec.shape):
        return pictures.grid(x.unsqueeze(0), spec, largest=None)
    strips = replace(spec, shape=(1, spec.size))
    return pictures.grid(x.view(len(x), 1, 1, spec.size), strips, largest=None).repeat_interleave(8, 0)


def _square(rows: Sequence[Tensor], spec: Spec) -> Tensor:
    """Stack rows of any length, [rows, columns, *shape], the short ones filled up with the lowest value."""
    columns, empty = max(len(row) for row in rows), spec.low if pictures.is_picture(spec.shape) else torch.nan
    full = [torch.cat([r, torch.full((columns - len(r), *r.shape[1:]), empty, device=r.device)]) for r in rows]
    return torch.stack(full)
