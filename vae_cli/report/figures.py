"""The figures of a finished run, as PNG files and as SVG that takes the colours of the page it stands on."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from vae_cli.disk import whole
from vae_cli.output import writable

PANELS = ("elbo", "reconstruction", "kl", "kl_weight")
TITLES = {
    "elbo": "ELBO (nats)",
    "reconstruction": "reconstruction, E log p(x|z) (nats)",
    "kl": "KL(q ‖ p) (nats)",
    "kl_weight": "KL weight",
}
NATS = ("elbo", "log_likelihood", "kl", "reconstruction", "gap", "mutual_information", "marginal_kl")
LONGEST = 24  # letters of a class name beside a picture or in a legend
LONG = 80  # letters of the settings that name a run
INK = "#010203"  # stands for the page's own text colour while an SVG is drawn
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
CLEAR = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=110, bbox_inches="tight")


@contextmanager
def for_a_page() -> Iterator[None]:
    """Draw within the block on no ground and in the page's ink."""
    style: Any = dict.fromkeys(INKED, INK) | dict.fromkeys(CLEAR, "none")
    with matplotlib.rc_context(style | {"svg.fonttype": "none", "svg.hashsalt": "vae-cli"}):
        yield


def svg(figure: Figure, name: str) -> str:
    """Return a figure as one <svg> element for the inside of a page; drawn within `for_a_page`.

    `name` begins its ids, which no other figure of the page may share.
    """
    FigureCanvasAgg(figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=110, metadata=NO_METADATA)
    found = text.getvalue()
    found = re.sub(r"<metadata>.*?</metadata>", "", found[found.index("<svg") :], flags=re.DOTALL)
    found = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", found)
    return found.replace(INK, "currentColor")


def picture(image: Tensor, path: Path, title: str, rows: Sequence[str] = (), *, sideways: bool = False) -> None:
    """Write a picture [H, W, 3] under a title, its rows named where names are given.

    `sideways` says that the rows are blocks side by side, as `pictures.grid` lays out what is no picture.
    """
    height, width = image.shape[:2]
    figure = Figure(figsize=(10.0, 4.0 if sideways else max(0.6, 10.0 * height / width)))
    axes = figure.add_subplot()
    axes.imshow(image.numpy(), interpolation="nearest", aspect="auto" if sideways else "equal")
    axes.set_title(title, fontsize=11, loc="left")
    step, rows = (width if sideways else height) / max(1, len(rows)), [_literal(name) for name in rows]
    places = [step * (k + 0.5) for k in range(len(rows))]
    if sideways:  # names side by side need room
        every = -(-len(rows) // 12) or 1
        places, rows = places[::every], rows[::every]
    axes.set_xticks(*((places, rows) if sideways else ([],)))
    axes.set_yticks(*(([],) if sideways else (places, rows)))
    axes.tick_params(length=0)
    _save(figure, path)


def terms(lines: list[dict[str, float]], path: Path) -> None:
    """Draw the ELBO's terms over time, from the lines of a metrics.jsonl."""
    figure = Figure(figsize=(11.0, 6.5), layout="constrained")
    for axes, name in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        curve(axes, lines, name)
    figure.axes[0].legend()
    _save(figure, path)


def term(lines: list[dict[str, float]], name: str) -> Figure:
    """Draw one term of the ELBO over time."""
    figure = Figure(figsize=(5.4, 3.1), layout="constrained")
    curve(figure.add_subplot(), lines, name)
    if name == PANELS[0]:
        figure.axes[0].legend()
    return figure


def curve(axes: Any, lines: list[dict[str, float]], name: str) -> None:
    """Draw one term of the ELBO over time, of training and validation, onto axes."""
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


def _limit_to_the_late(axes: Any, lines: list[dict[str, float]], name: str) -> None:
    """Keep the steep start of a curve from flattening the rest of it."""
    values = [line[key] for line in lines for key in (f"train/{name}", f"valid/{name}") if key in line]
    late = sorted(values[len(values) // 20 :])
    if name != "kl_weight" and len(late) > 20 and late[-1] > late[0]:
        margin = 0.05 * (late[-1] - late[0])
        axes.set_ylim(late[0] - margin, late[-1] + margin)


def kl_by_dimension(kl: Tensor, units: int, path: Path) -> None:
    """Write the figure of the KL of each latent dimension."""
    _save(kl_bars(kl, units, width=10.0), path)


def kl_bars(kl: Tensor, units: int, *, width: float) -> Figure:
    """Draw the KL of each latent dimension, largest first; dead dimensions stand near 0.

    Where the dimensions depend on one another there are fewer columns than units, and the title says so.
    """
    order = kl.argsort(descending=True)
    figure = Figure(figsize=(width, 3.1), layout="constrained")
    axes = figure.add_subplot()
    axes.bar(range(len(kl)), kl[order].numpy())
    if len(kl) <= 6.4 * width:
        axes.set_xticks(range(len(kl)), [str(int(k)) for k in order], fontsize=8)
    split = len(kl) == units
    axes.set_xlabel("latent dimension" if split else "layer, or dimension where its KL is known")
    title = "KL(q ‖ p) of each latent dimension" if split else f"KL(q ‖ p), not split by all {units} dimensions"
    axes.set_title(f"{title} (nats)", fontsize=11, loc="left")
    axes.grid(axis="y", alpha=0.3)
    return figure


def scatter(points: Tensor, labels: Tensor | None, names: Sequence[str], axes_names: tuple[str, str]) -> Figure:
    """Draw points [N, 2], coloured by labels [N] of those names where there are any."""
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colors = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"]
    for k in range(len(names)) if labels is not None else ():
        x, y = points[labels == k].T
        axes.scatter(x, y, s=4, color=colors(k % colors.N), label=_in_legend(names[k]), rasterized=True)
    if labels is None:
        axes.scatter(points[:, 0], points[:, 1], s=4, color="C0", rasterized=True)
    elif len(names) <= 20:
        axes.legend(markerscale=3, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.grid(alpha=0.3)
    return figure


def _literal(name: str, longest: int = LONGEST) -> str:
    """Return a name from data or settings as matplotlib shows it letter by letter: no formula, cut where it is long."""
    name = writable(name)
    return (name if len(name) <= longest else name[: longest - 1] + "…").replace("$", r"\$")


def _in_legend(name: str) -> str:
    """Return a name that a legend shows: of those that begin with an underscore it shows none."""
    return " " * name.startswith("_") + _literal(name)


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
        axes.annotate(_literal(name, LONG), (rate, distortion), xytext=(5, 4), textcoords="offset points", fontsize=8)
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
    axes.set_xlabel(_literal(setting, LONG))
    axes.set_title(_literal(metric, LONG) + " (nats)" * metric.endswith(NATS), fontsize=11, loc="left")
    axes.grid(alpha=0.3)
    _save(figure, path)
    return path
