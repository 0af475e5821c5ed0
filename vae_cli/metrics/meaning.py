"""What a number measures, and what it cannot be compared with."""

from __future__ import annotations

from typing import Any

from vae_cli.data import Dataset


def measure(dataset: Dataset, likelihood: Any, *, conditional: bool = False) -> str:
    """Say in a few words what log p(x) is of."""
    return _measure(dataset, likelihood) + (", given labels" if conditional else "")


def _measure(dataset: Dataset, likelihood: Any) -> str:
    spec, discrete = dataset.spec, getattr(likelihood, "discrete", False)
    if getattr(likelihood, "support", "real") == "binary" and not spec.binary:
        return "cross-entropy of grey values under Bernoulli, no log-likelihood"
    if discrete:
        how = {
            "bernoulli": ", drawn anew in training and once for evaluation (data.seed)",
            "static": ", drawn once (data.seed)",
            "threshold": ", grey levels above one half",
        }.get(dataset.binarized or "", "")
        return f"log-mass of {'binary values' + how if spec.binary else f'{spec.levels} grey levels'}"
    if spec.dequantized:
        return f"log-density of {spec.dequantized} grey levels dequantised to [0, 1]"
    units = "in the data's own units" + (", standardised in training" if spec.mean else "")
    return f"log-density {'on discrete values' if spec.levels else 'of real values'}, {units}"


def caveats(dataset: Dataset, likelihood: Any) -> list[str]:
    """Return what a person must know before comparing the numbers."""
    spec, found = dataset.spec, list(dataset.notes)
    if getattr(likelihood, "support", "real") == "binary" and not spec.binary:
        found.append(
            "bernoulli on grey values: its number is a cross-entropy, not a log-likelihood; "
            "data.binarize=dynamic or likelihood=continuous_bernoulli gives one"
        )
    if dataset.binarized and len(spec.shape) == 3 and spec.shape[0] == 3:
        found.append(
            "likelihood=bernoulli does not fit colour pictures, which are binarised channel by channel for it: take "
            "likelihood=discretized_logistic, which models their grey levels (gaussian and laplace model densities)"
        )
    if spec.levels is not None and not getattr(likelihood, "discrete", False):
        found.append(
            "a density on discrete values can grow without bound: compare it only with runs of the same likelihood "
            "settings" + ("" if spec.binary else ", or set data.dequantize=true")
        )
    return found
