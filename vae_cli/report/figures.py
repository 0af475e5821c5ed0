"""The figures of a finished run, as PNG files and as SVG in the colours of the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import wrap
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from vae_cli.system.disk import whole
from vae_cli.system.output import writable

PANELS = ("elbo", "reconstruction", "kl", "kl_weight")
TITLES = {
    "elbo": "ELBO (nats)",
    "reconstruction": "reconstruction, E log p(x|z) (nats)",
    "kl": "KL(q ‖ p) (nats)",
    "kl_weight": "KL weight",
}
BLUE, ORANGE = "#2f7fc1", "#d1741a"  # of PNG files; a page has its own two, for light and for dark
NATS = ("elbo", "log_likelihood", "kl", "reconstruction", "gap", "mutual_information", "marginal_kl")
LISTED = 20  # classes that a legend lists at most
LONGEST = 24  # letters of a class name beside a picture or in a legend
LONG = 80  # letters of the settings that name a run
CURVES = 8  # curves that a legend names; more of them would cover the figure
INK = "#010203"  # stands for the page's own text colour while an SVG is drawn
INKED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
CLEAR = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file."""
    _save(figure, path)
    return path


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    with whole(path) as partial:
        figure.savefig(partial, format="png", dpi=110, bbox_inches="tight")


@contextmanager
def for_a_page() -> Iterator[None]:
    """Draw within the block without a background and in the page's text colour."""
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
    for drawn, shown in ((INK, "currentColor"), (BLUE, "var(--blue)"), (ORANGE, "var(--orange)")):
        found = found.replace(drawn, shown)
    return found


def picture(image: Tensor, path: Path, title: str, rows: Sequence[str] = ()) -> None:
    """Write a picture [H, W, 3] under a title, its rows named where names are given."""
    height, width = image.shape[:2]
    figure = Figure(figsize=(10.0, max(0.6, 10.0 * height / width)))
    axes = figure.add_subplot()
    axes.imshow(image.numpy())  # at its own size the nearest pixel, reduced without aliasing
    axes.set_title(title, fontsize=11, loc="left")
    name_blocks(axes, rows, height)
    axes.set_xticks([])
    _save(figure, path)


def name_blocks(axes: Any, names: Sequence[str], height: float) -> None:
    """Name equal blocks, one above the other, on the vertical axis; of many, some."""
    step = height / max(1, len(names))
    every = -(-len(names) // 64) or 1
    shown = ["\n".join(literal(line) for line in name.split("\n")) for name in names[::every]]
    axes.set_yticks([step * (k * every + 0.5) - 0.5 for k in range(len(shown))], shown, fontsize=8)
    axes.tick_params(length=0)


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
        ("train", {"color": BLUE, "lw": 1.2}),
        ("valid", {"color": ORANGE, "marker": ".", "lw": 1.6}),
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
    axes.bar(range(len(kl)), kl[order].numpy(), color=BLUE)
    if len(kl) <= 6.4 * width:
        axes.set_xticks(range(len(kl)), [str(int(k)) for k in order], fontsize=8)
    split = len(kl) == units
    axes.set_xlabel("latent dimension" if split else "layer, or dimension where its KL is known")
    title = "KL(q ‖ p) of each latent dimension" if split else f"KL(q ‖ p), not split by all {units} dimensions"
    axes.set_title(f"{title} (nats)", fontsize=11, loc="left")
    axes.grid(axis="y", alpha=0.3)
    return figure


def scatter(points: Tensor, labels: Tensor | None, names: Sequence[str], axes_names: tuple[str, str]) -> Figure:
    """Draw points [N, 2], coloured by labels [N] of those names where there are any.

    More than LISTED classes have no legend; their colours run with their number.
    """
    figure = Figure(figsize=(5.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    few = len(names) <= LISTED
    colours = matplotlib.colormaps[("tab10" if len(names) <= 10 else "tab20") if few else "turbo"]
    each: Any = BLUE
    if labels is not None:
        each = colours(labels.numpy() if few else labels.numpy() / (len(names) - 1))
    axes.scatter(points[:, 0], points[:, 1], s=4, c=each, rasterized=True)  # one call, however many classes
    if labels is not None and few:
        marks: Any = [Line2D([], [], ls="", marker=".", ms=8, color=colours(k)) for k in range(len(names))]
        shown = [_in_legend(name) for name in names]
        axes.legend(marks, shown, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.set_xlabel(axes_names[0])
    axes.set_ylabel(axes_names[1])
    axes.grid(alpha=0.3)
    return figure


def literal(name: str, longest: int = LONGEST) -> str:
    """Return a name from data or settings as matplotlib shows it letter by letter: no formula, cut where it is long."""
    name = writable(name)
    return (name if len(name) <= longest else name[: longest - 1] + "…").replace("$", r"\$")


def _in_legend(name: str) -> str:
    """Return a name that a legend shows: of those that begin with an underscore it shows none."""
    return " " * name.startswith("_") + literal(name)


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
    for rate, distortion, _ in points:
        axes.plot(rate, distortion, marker="o", color="C0")
    axes.margins(0.08)
    low, high = axes.get_xlim()
    for rate, distortion, name in points:
        left = rate <= (low + high) / 2  # the label stands on the side that has more room
        axes.annotate(
            "\n".join(wrap(literal(name, LONG), 40)),
            (rate, distortion),
            xytext=(6 if left else -6, 4),
            textcoords="offset points",
            fontsize=8,
            ha="left" if left else "right",
        )
    for elbo in {round(-rate - distortion) for rate, distortion, _ in points}:
        axes.plot([low, high], [-elbo - low, -elbo - high], color="0.8", lw=0.8, zorder=0)
    axes.set_xlim(low, high)
    axes.set_xlabel("rate: KL(q ‖ p) (nats)")
    axes.set_ylabel("distortion: −E log p(x|z) (nats)")
    axes.set_title("rate and distortion; grey: equal ELBO", fontsize=11, loc="left")
    _save(figure, path)
    return path


def _logarithmic(axes: Any, values: Sequence[float]) -> None:
    """Set a logarithmic axis: marked by the values where they are few whole numbers, else by powers of ten."""
    axes.set_xscale("log")
    if len(values) <= 12 and all(value == round(value) for value in values):
        axes.set_xticks(values, [f"{value:g}" for value in values])
        axes.minorticks_off()


Curve = Sequence[tuple[float, Sequence[float]]]  # values of a setting, each with those of a metric, one a seed


def over_setting(curves: Sequence[tuple[str, Curve]], setting: str, metric: str, path: Path) -> Path:
    """Draw a metric over a setting: every seed a point, and a line through the means of a curve.

    Args:
        curves: what sets each apart from the others, and its values.
        setting: on the horizontal axis.
        metric: on the vertical axis.
        path: of the PNG.
    """
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for k, (name, curve) in enumerate(curves):
        _seeds_and_mean(axes, sorted(curve), literal(name, LONG), f"C{k % 10}")
    if 1 < len(curves) <= CURVES:
        axes.legend(fontsize=8)
    values = sorted(value for _, curve in curves for value, _ in curve)
    if values[0] > 0 and values[-1] / values[0] >= 8:
        _logarithmic(axes, values)
    axes.set_xlabel(literal(setting, LONG))
    axes.set_title(literal(metric, LONG) + " (nats)" * metric.endswith(NATS), fontsize=11, loc="left")
    axes.grid(alpha=0.3)
    _save(figure, path)
    return path


def _seeds_and_mean(axes: Any, curve: Curve, name: str, color: str) -> None:
    for value, found in curve:
        axes.plot([value] * len(found), found, marker=".", ls="", color=color, alpha=0.5)
    means = [sum(found) / len(found) if found else math.nan for _, found in curve]
    axes.plot([value for value, _ in curve], means, color=color, marker="o", label=name)
