"""What a number measures, and with what it cannot be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vae_cli.data import Dataset, Examples, Resident, Spec
from vae_cli.metrics.elbo import Evaluation

ENTRIES = 2**20  # entries of a table that are looked at
FEW_VALUES = 10  # different values of a column up to which it may be of categories
SEEN = 2**22  # elements of x that an ELBO is judged by
SURE = 4.0  # standard errors


BINARISED = {
    "bernoulli": ", drawn anew in training and once for evaluation (data.seed)",
    "static": ", drawn once (data.seed)",
    "threshold": ", grey levels above one half",
}


def measure(dataset: Dataset, likelihood: Any, *, conditional: bool = False) -> str:
    """Return in a few words what log p(x) measures."""
    of = likelihood.support.measure(dataset.spec, BINARISED.get(dataset.binarized or "", ""))
    return of + ", of what is observed" * dataset.spec.missing + ", given labels" * conditional


def caveats(dataset: Dataset, likelihood: Any) -> list[str]:
    """Return the caveats to know before comparing the numbers."""
    spec, found = dataset.spec, list(dataset.notes)
    support = likelihood.support
    if support.mass and not support.is_mass_of(spec):
        found.append(
            "bernoulli on grey values: its number is a cross-entropy, not a log-likelihood; "
            "data.binarize=dynamic or likelihood=continuous_bernoulli gives one"
        )
    if dataset.binarized and len(spec.shape) == 3 and spec.shape[0] == 3:
        found.append(
            "likelihood=bernoulli does not fit colour pictures, which are binarised channel by channel for it: take "
            "likelihood=discretized_logistic, which models their grey levels (gaussian and laplace model densities)"
        )
    if spec.levels is not None and not support.mass:
        found.append(
            "a density on discrete values can grow without bound: compare it only with runs of the same likelihood "
            "settings" + ("" if spec.binary else ", or set data.dequantize=true")
        )
    return found if support.mass else found + _of_columns(dataset)


def _of_columns(dataset: Dataset) -> list[str]:
    """Return on which columns of a table a density grows without bound: those of one value, and of few."""
    spec = dataset.spec
    examples = dataset.train if isinstance(dataset.train, Examples) else dataset.valid  # a stream is not looked at
    if len(spec.shape) != 1 or spec.levels is not None or spec.dequantized or examples is None:
        return []
    x = examples.some(max(10 * FEW_VALUES, ENTRIES // spec.size), seed=0).x[:]
    steps = x.sort(0).values.diff(dim=0)  # missing values come last, and their steps are NaN
    values = 1 + ((steps != 0) & ~steps.isnan()).sum(0)  # different ones, of each column
    constant = (values == 1).nonzero().flatten().tolist()
    observed = (~x.isnan()).sum(0)
    few = ((values > 1) & (values <= FEW_VALUES) & (10 * values <= observed)).nonzero().flatten().tolist()
    found = []
    if constant and len(x) > 1:
        found.append(
            f"{_listed(constant)} hold a single value: a density grows there as far as likelihood.min_scale allows, "
            "nats gained for nothing; leave them out"
        )
    if few:
        found.append(
            f"{_listed(few)} hold at most {FEW_VALUES} different values, taken for real numbers: where they stand for "
            "categories, a density on them means little and grows without bound; compare only runs of the same "
            "likelihood settings"
        )
    return found


def _listed(columns: Sequence[int]) -> str:
    shown = ", ".join(map(str, columns[:8]))
    return f"columns {shown}{', …' if len(columns) > 8 else ''} ({len(columns)} in all, counted from 0)"


def worse_than_no_model(result: Evaluation, split: str, spec: Spec, likelihood: Any, data: Resident) -> str | None:
    """Return a warning if the ELBO of a split is clearly below the score of independent elements, without a model.

    Args:
        result: of the split.
        split: its name.
        spec: of the data.
        likelihood: of the model.
        data: of the split.
    """
    some = data.part(max(1, SEEN // spec.size))
    nats, what = _without_a_model(spec, likelihood, some.batch(slice(None)).gapped, some.observed)
    if not result.elbo + SURE * (0.0 if math.isnan(result.elbo_stderr) else result.elbo_stderr) < nats:
        return None
    return (
        f"{split}/elbo={result.elbo:.6g} is worse than {what} ({nats:.6g} nats): "
        "nothing has been learned; train longer, lower optimizer.lr, or look at the data"
    )


def _without_a_model(spec: Spec, likelihood: Any, x: Tensor, observed: float) -> tuple[float, str]:
    """Return the mean log p(x) of elements that know nothing of one another, nats, and what they are.

    `observed` is the mean number of elements of an example x that are not NaN.
    """
    if likelihood.support.mass:
        if likelihood.support.is_mass_of(spec) and not spec.levels:
            return -math.inf, "a guess"  # a mass on values without number, counts: no guess is uniform
        levels = spec.levels if likelihood.support.is_mass_of(spec) and spec.levels else 2
        return -observed * math.log(levels), f"a uniform guess of {math.log2(levels):.3g} bits for each element"
    if spec.unit and spec.mean is None:
        return 0.0, "a uniform density on [0, 1]"
    std = (x.double() - x.double().nanmean(0)).square().nanmean(0).sqrt()
    log_std = torch.where(std > 0, std, torch.ones_like(std)).log()
    if spec.log_std:
        log_std = log_std + torch.tensor(spec.log_std, dtype=log_std.dtype, device=x.device).view(spec.shape)
    share = 1.0 - x.isnan().double().mean(0)  # of the examples that hold an element
    return -float((share * log_std).sum()) - 0.5 * observed * math.log(2.0 * math.pi * math.e), (
        "a Gaussian for each element"
    )
