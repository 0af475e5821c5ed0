"""The figures of a finished run, as PNG."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

PANELS = ("elbo", "reconstruction", "kl", "kl_weight")
TITLES = {
    "elbo": "ELBO (nats)",
    "reconstruction": "reconstruction, E log p(x|z) (nats)",
    "kl": "KL(q ‖ p) (nats)",
    "kl_weight": "KL weight",
}


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def picture(image: Tensor, path: Path, title: str, rows: Sequence[str] = (), *, sideways: bool = False) -> None:
    """Write a picture [H, W, 3] under a title, its rows named where names are given.

    `sideways` says that the rows are blocks side by side, as `pictures.grid` lays out what is no picture.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(10.0, 4.0 if sideways else max(0.6, 10.0 * height / width)))
    axes = figure.add_subplot()
    axes.imshow(image.numpy(), interpolation="nearest", aspect="auto" if sideways else "equal")
    axes.set_title(title, fontsize=11, loc="left")
    step = (width if sideways else height) / max(1, len(rows))
    places = [step * (k + 0.5) for k in range(len(rows))]
    if sideways:  # names side by side need room
        every = -(-len(rows) // 12) or 1
        places, rows = places[::every], rows[::every]
    axes.set_xticks(*((places, rows) if sideways else ([],)))
    axes.set_yticks(*(([],) if sideways else (places, rows)))
    axes.tick_params(length=0)
    _save(figure, path)


def terms(metrics: Path, path: Path) -> None:
    """Draw the ELBO's terms over time from a metrics.jsonl."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    figure = Figure(figsize=(11.0, 6.5), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for split, style in (
            ("train", {"color": "C0", "lw": 1.0}),
            ("valid", {"color": "C1", "marker": ".", "lw": 1.4}),
        ):
            key = f"{split}/{name}"
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if points:
                few = {"marker": "."} if len(points) < 5 else {}
                axes.plot(*zip(*points, strict=True), label=split, **style | few)
        _limit_to_the_late(axes, lines, name)
        axes.set_title(TITLES[name], fontsize=11, loc="left")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    _save(figure, path)


def _limit_to_the_late(axes: Any, lines: list[dict[str, float]], name: str) -> None:
    """Keep the steep start of a curve from flattening the rest of it."""
    values = [line[key] for line in lines for key in (f"train/{name}", f"valid/{name}") if key in line]
    late = sorted(values[len(values) // 20 :])
    if name != "kl_weight" and len(late) > 20 and late[-1] > late[0]:
        margin = 0.05 * (late[-1] - late[0])
        axes.set_ylim(late[0] - margin, late[-1] + margin)


def kl_by_dimension(kl: Tensor, units: int, path: Path) -> None:
    """Draw the KL of each latent dimension, largest first; dead dimensions stand near 0.

    Where the dimensions depend on one another there are fewer columns than units, and the title says so.
    """
    order = kl.argsort(descending=True)
    figure = Figure(figsize=(10.0, 3.0), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(kl)), kl[order].numpy())
    if len(kl) <= 64:
        axes.set_xticks(range(len(kl)), [str(int(k)) for k in order], fontsize=8)
    split = len(kl) == units
    axes.set_xlabel("latent dimension" if split else "layer, or dimension where its KL is known")
    title = "KL(q ‖ p) of each latent dimension" if split else f"KL(q ‖ p), not split by all {units} dimensions"
    axes.set_title(f"{title} (nats)", fontsize=11, loc="left")
    axes.grid(axis="y", alpha=0.3)
    _save(figure, path)


def log_likelihood(estimate: Any, path: Path) -> None:
    """Draw the bound over the number of importance samples, and log p(x) of the examples."""
    figure = Figure(figsize=(11.0, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(list(estimate.curve), list(estimate.curve.values()), marker=".")
    left.axhline(float(estimate.elbo.mean()), color="C1", lw=1.0, ls="--", label="ELBO")
    left.set_xscale("log")
    left.set_xlabel("importance samples K")
    left.set_title("E log 1/K Σ w, a bound of log p(x) (nats)", fontsize=11, loc="left")
    left.legend()
    left.grid(alpha=0.3)
    right.hist(estimate.log_likelihood.numpy(), bins=60)
    right.set_xlabel("nats")
    right.set_title("log p(x) of each example", fontsize=11, loc="left")
    right.grid(alpha=0.3)
    _save(figure, path)


def rate_distortion(points: Sequence[tuple[float, float, str]], path: Path) -> Path:
    """Draw rate (KL) against distortion (−reconstruction), nats, a named point a run, over lines of equal ELBO."""
    figure = Figure(figsize=(7.0, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for rate, distortion, name in points:
        axes.plot(rate, distortion, marker="o", color="C0")
        axes.annotate(name, (rate, distortion), xytext=(5, 4), textcoords="offset points", fontsize=8)
    low, high = axes.get_xlim()
    for elbo in {round(-rate - distortion) for rate, distortion, _ in points}:
        axes.plot([low, high], [-elbo - low, -elbo - high], color="0.8", lw=0.8, zorder=0)
    axes.set_xlim(low, high)
    axes.set_xlabel("rate: KL(q ‖ p) (nats)")
    axes.set_ylabel("distortion: −E log p(x|z) (nats)")
    axes.set_title("rate and distortion; grey: equal ELBO", fontsize=11, loc="left")
    _save(figure, path)
    return path


def over_setting(curve: Sequence[tuple[float, Sequence[float]]], setting: str, metric: str, path: Path) -> Path:
    """Draw a metric over a setting, every seed a point and their mean a line."""
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    ordered = sorted(curve)
    for value, found in ordered:
        axes.plot([value] * len(found), found, marker=".", ls="", color="C0", alpha=0.5)
    values = sorted({value for value, _ in ordered})
    pooled = [[y for v, found in ordered if v == value for y in found] for value in values]
    means = [sum(each) / len(each) if each else math.nan for each in pooled]
    axes.plot(values, means, color="C0", marker="o")
    if values[0] > 0 and values[-1] / values[0] >= 8:
        axes.set_xscale("log", base=2)
    axes.set_xlabel(setting)
    axes.set_title(f"{metric} (nats)", fontsize=11, loc="left")
    axes.grid(alpha=0.3)
    _save(figure, path)
    return path
