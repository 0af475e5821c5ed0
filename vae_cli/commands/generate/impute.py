"""task=impute: missing elements of examples filled in, beside what was given."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vae_cli.api import Trained
from vae_cli.batch import Batch
from vae_cli.commands.generate import imputation
from vae_cli.commands.generate.saving import save
from vae_cli.commands.generate.sources import Examples, read_mask
from vae_cli.config.types import Count, Mask
from vae_cli.report import drawing
from vae_cli.report.drawing import COLUMNS
from vae_cli.system.errors import UserError

FEW = 20  # effective draws of z below which a mean is not to be relied on


def impute(
    model: Trained,
    folder: Path,
    *,
    examples: Examples,
    method: Literal["importance", "gibbs"],
    mask: Mask,
    n: Count | None,
    samples: Count,
    steps: Count,
) -> list[Path]:
    """Fill in the missing elements of n examples: those that are NaN, and those that a mask hides."""
    if "sees x" in model.vae.likelihood.gives:
        raise UserError(
            "task=impute: p(x|z) of this run gives each pixel those before it alone; runs of another likelihood are "
            "allowed"
        )
    index = examples.some(len(examples) if n is None else n)
    x, y = examples.at(index)
    known = _known(model, x, mask)
    batch = Batch(model.spec.standardize(x).masked_fill(~known, 0.0), y, known)
    found: dict[str, Any] = {}
    if method == "gibbs":
        _, made = imputation.by_turns(model.vae, batch, steps=steps)
    else:
        made, effective = imputation.by_importance(model.vae, batch, samples=samples, steps=steps)
        found["effective_samples"] = effective
        if few := int((effective < FEW).sum()):
            rest = f"{few} of {len(x)} imputations rest on fewer than {FEW} effective draws"
            print(f"warning: {rest}: raise task.samples, or train with objective=iwae", file=sys.stderr)
    final = torch.where(known, x, model.spec.restore(made))
    rows, names = _imputed_rows(x, known, final)
    title = f"missing values by {'importance sampling' if found else f'{steps} turns of draws'}"
    return [
        drawing.grid(model.spec, rows[:30], folder / "imputed.png", title, names[:30]),
        save(folder / "imputed.npz", x=x, imputed=final, known=known, index=index, **found),
    ]


def _known(model: Trained, x: Tensor, mask: str) -> Tensor:
    """Return which elements of x [n, *shape] are given: those that are there, and that the mask leaves.

    Raises:
        UserError: nothing is left to fill in.
    """
    known = ~x.isnan()
    if mask == "auto":
        mask = "none" if model.spec.missing or not bool(known.all()) else "left"
    if mask != "none":
        known = known & read_mask(mask, model, len(x)).to(x.device)
    if bool(known.all()):
        raise UserError("task.mask: no value of these examples is missing; left, right, top, bottom, random or a file "
                        "hides some")  # fmt: skip
    return known


def _imputed_rows(x: Tensor, known: Tensor, final: Tensor) -> tuple[list[Tensor], list[str]]:
    """Return rows of what was given (gaps are NaN), what was made of it, and of the truth where there is any."""
    shown = {"given": x.masked_fill(~known, math.nan), "imputed": final, "truth": x}
    if bool(x[~known].isnan().all()):
        del shown["truth"]
    rows = [part for parts in zip(*(t.split(COLUMNS) for t in shown.values()), strict=True) for part in parts]
    return rows, list(shown) * (len(rows) // len(shown))
