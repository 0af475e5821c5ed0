"""report.html: a finished run on one self-contained page, without scripts and without network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_cli.config import typed
from vae_cli.data import Resident, Spec
from vae_cli.metrics import Evaluation
from vae_cli.report import pictures
from vae_cli.report.console import SPLITS, results
from vae_cli.system.disk import TYPED
from vae_cli.system.disk import write as write_file
from vae_cli.system.output import writable
from vae_cli.vae import VAE

PRIOR = "{display}s of p(x|z) for draws of z from the prior"
MOVED = "one latent dimension moved at a time, the most informative first"
COLUMNS = 10  # pictures beside one another: as many as a phone shows
TILES = (
    ("log_likelihood", "log p(x), nats"),
    ("elbo", "ELBO, nats"),
    ("reconstruction", "reconstruction, nats"),
    ("kl", "KL, nats"),
    ("active_units", "active units"),
    ("bits_per_dim", "bits/dim"),
)


@dataclass(frozen=True)
class Heading:
    """The words and numbers of a page.

    `split` is the one that its pictures and its largest numbers are of; `settings` are {'kl.weight': 1.0, …}.
    """

    title: str
    about: str
    split: str
    summary: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Drawn:
    """What a page shows: SVG elements, and with captions pictures as data URIs or, for tables, SVG elements."""

    curves: Sequence[str]
    pictures: Sequence[tuple[str, str]]
    kl: str
    kl_map: str | None  # where z is a picture of its own
    latent: str
    latent_note: str
    tables: Sequence[tuple[str, str]] = ()
    magnified: bool = True  # whether pictures are so small that their pixels are seen


def drawn(vae: VAE, data: Resident, result: Evaluation, spec: Spec, lines: list[dict[str, float]]) -> Drawn:
    """Draw everything that a page shows of a model; `lines` are those of metrics.jsonl."""
    from vae_cli.report import figures, kl_map

    codes, labels = pictures.codes(vae, data)
    points, axes_names = pictures.plane(codes)
    classes = labels if spec.classes else None
    with figures.for_a_page():
        curves = [figures.svg(figures.term(lines, name), name) for name in figures.PANELS]
        kl = figures.svg(figures.kl_bars(result.kl_by_dimension, result.units, width=5.4), "dimensions")
        grid = kl_map.grid(result.kl_by_dimension, vae.latent.layout.shape)
        drawn_map = None if grid is None else figures.svg(kl_map.draw(grid, width=5.4), "map")
        latent = figures.svg(figures.scatter(points, classes, spec.names or (), axes_names), "latent")
        seen = pictures.is_picture(spec.shape)
        tables = () if seen else _tables(vae, data, result, spec)
    return Drawn(
        curves=curves,
        pictures=_pictures(vae, data, result, spec) if seen else (),
        tables=tables,
        magnified=max(spec.shape[-2:]) < pictures.SMALL,
        kl=kl,
        kl_map=drawn_map,
        latent=latent,
        latent_note=_latent_note(len(codes), spec if classes is not None else None),
    )


def _latent_note(shown: int, labelled: Spec | None) -> str:
    """Return a caption: what the points of the latent space are, and what their colours mean, if any."""
    from vae_cli.report.figures import LISTED

    note = f"E[z|x] of {shown:,} examples"
    if labelled is None or labelled.classes is None:
        return note
    many = f" (by the number of {labelled.classes:,} classes)" if labelled.classes > LISTED else ""
    return f"{note}, coloured by class{many}"


def _pictures(vae: VAE, data: Resident, result: Evaluation, spec: Spec) -> list[tuple[str, str]]:
    """Return captions and data URIs."""
    display = vae.likelihood.display
    moved, _ = pictures.traversals(vae, data, result.kl_by_dimension, most=6, steps=COLUMNS)
    shown = (
        (f"data above the {display}s of p(x|z)", pictures.reconstructions(vae, data, COLUMNS)),
        (PRIOR.format(display=display), pictures.samples(vae, data, 5, COLUMNS)),
        (f"{MOVED}, each row from another example", moved),
    )
    return [(caption, _uri(pictures.grid(x, spec))) for caption, x in shown]


def _tables(vae: VAE, data: Resident, result: Evaluation, spec: Spec) -> list[tuple[str, str]]:
    """Return captions and SVG elements, for examples that are no pictures."""
    from vae_cli.report import figures, tables

    display = vae.likelihood.display
    x, again = pictures.reconstructions(vae, data, 3)
    moved, dimensions = pictures.traversals(vae, data, result.kl_by_dimension, most=4, steps=5)
    way = f"each {vae.latent.moved.format(2.5)}, downwards"
    drawings = (
        (f"data against the {display}s of p(x|z)", tables.against(x, again, spec, "reconstructions", width=5.4)),
        (PRIOR.format(display=display),
         tables.heat_map(pictures.samples(vae, data, 1, 20), spec, "samples, a line each", width=5.4)),
        (f"{MOVED}, each block from another example",
         tables.heat_map(moved, spec, way, [f"z{j}" for j in dimensions], width=5.4)),
    )  # fmt: skip
    return [(caption, figures.svg(figure, f"table{k}")) for k, (caption, figure) in enumerate(drawings)]


def write(folder: Path, heading: Heading, warnings: Sequence[str], sections: Drawn) -> Path:
    """Write report.html into a run folder; all text of the run is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    template = environment.from_string((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    splits, rows = results(heading.summary, reversed(SPLITS))  # on a phone the first column is what one sees
    shown = ((label, heading.summary.get(f"{heading.split}/{name}")) for name, label in TILES)
    tiles = [(label, _tile(value)) for label, value in shown if value is not None]
    content = template.render(
        heading=heading, run=folder.name, command=_command(folder), tiles=tiles, splits=splits, rows=rows,
        warnings=warnings, sections=sections,
    )  # fmt: skip
    return write_file(folder / "report.html", content)


def _shown(value: Any) -> Any:
    """Return a text of the run, escaped; drawings, which are elements of the page, stay as they are."""
    return writable(value) if type(value) is str else value


def _tile(value: Any) -> Any:
    """Write a number so that it fits into its tile."""
    if not isinstance(value, float):
        return value
    return f"{value:.2f}" if abs(value) < 1e7 else f"{value:.3g}"


def label_names(labels: Tensor | None, spec: Spec) -> list[str] | None:
    """Return the names of labels [N] or [N, A], or None where there are none."""
    if labels is None:
        return None
    if spec.names:
        return [writable(spec.names[k]) for k in labels.tolist()]
    return [" ".join(f"{value:g}" for value in row) for row in labels.tolist()]


def _uri(image: Tensor) -> str:
    """Return a picture [H, W, 3], uint8, as a data URI."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image.to(torch.uint8).numpy()).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _command(folder: Path) -> str:
    """Return the command line of the run, if it is known; of a setting given again on resuming, the last value."""
    import shlex

    given = {override.partition("=")[0]: override for override in typed(folder)}
    return shlex.join(["vae-train", *given.values()]) if (folder / TYPED).is_file() else ""
