"""task=anomaly: how likely each example is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vae_cli.api import Trained
from vae_cli.commands.generate.sources import MANY, Examples
from vae_cli.config.types import Count
from vae_cli.report import drawing
from vae_cli.report.drawing import COLUMNS
from vae_cli.system.disk import write_csv
from vae_cli.system.errors import UserError


def anomaly(
    model: Trained,
    folder: Path,
    *,
    examples: Examples,
    score: Literal["log_likelihood", "elbo"],
    over_classes: Literal["auto", "mean", "max", "none"],
    samples: Count,
    n: Count,
) -> list[Path]:
    """Score every example by log p(x) or the ELBO, nats; write them in order, the least likely first, and show n.

    Where the score is over all classes, its largest over them, the logarithm of its mean and the class that it is
    largest under stand beside it.
    """
    if over_classes == "auto":
        over_classes = "mean" if model.conditional and model.spec.classes and examples.y is None else "none"
    columns: dict[str, list[Any]] = {}
    if over_classes == "none":
        examples.need_labels()
        scores = _scores(model, examples, score, samples)
    else:
        scores, columns = _scores_over_classes(model, examples, score, samples, over_classes)
    if examples.y is not None:
        columns["label"] = examples.y.tolist()
    order = scores.argsort()
    table: list[Sequence[object]] = [["index", score, *columns]]
    for i in order.tolist():
        table.append([i, f"{scores[i].item():.6g}", *(column[i] for column in columns.values())])
    path = write_csv(folder / "scores.csv", table)
    least = order[: min(n, -(-len(order) // 2))]
    most = order[len(least) :].flip(0)[:n]  # of few examples none is shown twice
    worst, best = (examples.at(part.tolist())[0] for part in (least, most))
    rows = [*worst.split(COLUMNS), *best.split(COLUMNS)]
    names = ["least likely"] * len(worst.split(COLUMNS)) + ["most likely"] * len(best.split(COLUMNS))
    return [path, drawing.grid(model.spec, rows, folder / "extremes.png", f"examples by {score}", names)]


def _scores(model: Trained, examples: Examples, score: str, samples: int) -> Tensor:
    """Return the score of each example [N], nats, under its label where the run is conditional."""
    score_of = model.log_likelihood if score == "log_likelihood" else model.elbo
    return torch.cat([score_of(x, y, samples=samples).cpu() for x, y in examples.batches(MANY)])


def _scores_over_classes(
    model: Trained, examples: Examples, score: str, samples: int, over_classes: str
) -> tuple[Tensor, dict[str, list[Any]]]:
    """Return a score of each example over all classes [N], nats, and the columns that stand beside it."""
    if not model.conditional or model.spec.names is None:
        raise UserError(f"task.over_classes={over_classes}: the run is not conditional on classes; auto is allowed")
    score_of = model.log_likelihood_by_class if score == "log_likelihood" else model.elbo_by_class
    by_class = torch.cat([score_of(x, samples=samples).cpu() for x, _ in examples.batches(MANY)])
    found = {"max": by_class.amax(-1), "mean": by_class.logsumexp(-1) - math.log(by_class.shape[-1])}
    columns: dict[str, list[Any]] = {f"{score}_{how}": [f"{s:.6g}" for s in each] for how, each in found.items()}
    columns["class"] = [model.spec.names[k] for k in by_class.argmax(-1).tolist()]
    return found[over_classes], columns
