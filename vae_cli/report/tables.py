"""Figures of examples that are no pictures: their elements from left to right."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from vae_cli.data import Spec
from vae_cli.report.figures import BLUE, ORANGE, literal, name_blocks

MISSING = "0.6"  # the grey of missing elements: on no colour map of values


def heat_map(x: Tensor, spec: Spec, title: str, rows: Sequence[str] = (), *, width: float = 10.0) -> Figure:
    """Draw rows of examples [rows, columns, *shape] that are no pictures, an example a line: its elements from left to
    right, their values as colours. Rows of the grid stand one below the other, with a gap between them.
    """
    lines = x.flatten(2).float().cpu()
    gap = torch.full((len(lines), 1, lines.shape[-1]), math.nan)
    image = torch.cat([lines, gap], 1).flatten(0, 1)[:-1]
    figure = Figure(figsize=(width, min(9.0, max(2.6, 0.11 * len(image) + 1.4))), layout="constrained")
    axes = figure.add_subplot()
    low, high, colours, meaning = _scale(spec)
    missing = lines.isnan()
    if bool((missing.any(-1) & ~missing.all(-1)).any()):
        axes.set_facecolor(MISSING)
    drawn = axes.imshow(
        image.numpy(), aspect="auto", interpolation="nearest", cmap=colours, vmin=low, vmax=high, rasterized=True
    )
    figure.colorbar(drawn, ax=axes, label=meaning, pad=0.01)
    axes.set_title(title, fontsize=11, loc="left")
    name_blocks(axes, rows, len(image) + 1)
    _name_elements(axes, spec, width)
    return figure


def against(real: Tensor, made: Tensor, spec: Spec, title: str, *, most: int = 4, width: float = 10.0) -> Figure:
    """Draw examples [N, *shape] that are no pictures over their elements, real values against reconstructed ones."""
    n = min(most, len(real))
    figure = Figure(figsize=(width, 1.0 + 1.5 * n), layout="constrained")
    for axes, x, again in zip(figure.subplots(n, sharex=True, squeeze=False).flat, real, made, strict=False):
        marker = "." if spec.size > 60 else "o"
        axes.plot(x.flatten().cpu(), ls="", marker=marker, color=BLUE, label="data")
        axes.plot(again.flatten().cpu(), lw=1.2, marker=".", color=ORANGE, label="reconstruction")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.axes[0].set_title(title, fontsize=11, loc="left")
    figure.supylabel(_scale(spec)[3], fontsize=9)
    _name_elements(figure.axes[n - 1], spec, width)
    return figure


def _scale(spec: Spec) -> tuple[float, float, str, str]:
    """Return the range of the colours of values, their map, and what values are measured in."""
    if spec.mean is not None:
        return -3.0, 3.0, "RdBu_r", "standard deviations"
    return spec.low, spec.high, "viridis", "value"


def _own_scales(spec: Spec) -> list[str]:
    """Return a second line for the name of each element: what its values were before they were standardised."""
    if spec.mean is None or spec.std is None:
        return [""] * spec.size
    return [f"\n{_rounded(mean)} ± {_rounded(std)}" for mean, std in zip(spec.mean, spec.std, strict=True)]


def _rounded(value: float) -> str:
    """Return a number to three digits, 25,400 rather than 2.54e+04."""
    return f"{float(f'{value:.3g}'):,g}"


def _name_elements(axes: Any, spec: Spec, width: float) -> None:
    """Name the elements of an example on the horizontal axis where there is room for it; else number them."""
    if spec.features and spec.size <= 6 * width:
        names = [literal(name, 16) + scale for name, scale in zip(spec.features, _own_scales(spec), strict=True)]
        axes.set_xticks(range(spec.size), names, rotation=45 if spec.size > width else 0, fontsize=8)
        for label in axes.get_xticklabels() if spec.size > width else ():
            label.set_horizontalalignment("right")
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("element" if len(spec.shape) > 1 else "feature")
