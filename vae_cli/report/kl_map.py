"""The KL of a code that is a picture of its own, as a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from vae_cli.report import figures


def grid(kl: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Return the KL of each element of codes [C, h, w] as a map; None where codes, or what is known, are no map."""
    return kl.view(*shape) if len(shape) == 3 and len(kl) == math.prod(shape) else None


def draw(kl: Tensor, *, width: float) -> Figure:
    """Draw the KL of codes [C, h, w] as a map for each channel, on one scale that begins at 0."""
    columns = min(len(kl), 8)
    rows = -(-len(kl) // columns)
    side = (width - 1.2) / columns
    figure = Figure(figsize=(width, rows * (side * kl.shape[1] / kl.shape[2] + 0.3) + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for k, axes in enumerate(panels):
        axes.set_axis_off()
        if k < len(kl):
            drawn = axes.imshow(kl[k].numpy(), vmin=0.0, vmax=float(kl.max()), cmap="viridis", rasterized=True)
            axes.set_title(f"channel {k}", fontsize=8)
    figure.colorbar(drawn, ax=figure.axes, label="nats", pad=0.01, fraction=0.05)
    figure.suptitle("KL(q ‖ p) of each element of the code (nats)", fontsize=11, x=0.01, ha="left")
    return figure


def write(kl: Tensor, path: Path) -> None:
    """Write the map of codes [C, h, w] as a PNG file."""
    figures.save(draw(kl, width=10.0), path)
