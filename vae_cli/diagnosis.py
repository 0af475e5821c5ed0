"""What the curves of a finished run say of it, for the person who did not look at them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

FEW = 10  # validations below which a curve says nothing
LATE = 0.2  # the share of a run that counts as its end
RISING = 0.02  # share of the whole climb that a run still gains at its end while it has not converged
FALLEN = 0.02  # share of the whole climb that is lost after the best validation when a model overfits


def warnings(lines: Sequence[dict[str, float]], settled: float) -> list[str]:
    """Return what is amiss with a run, from the lines of its metrics.jsonl.

    Args:
        lines: of training and validation, in order.
        settled: the epoch from which the KL weight stays as it is; the ELBO of before says little.
    """
    curve = [(line["epoch"], line["valid/elbo"]) for line in lines if "valid/elbo" in line and line["epoch"] >= settled]
    if len(curve) < FEW:
        return []
    return [line for line in (_overfits(curve), _still_rises(curve)) if line]


def _overfits(curve: Sequence[tuple[float, float]]) -> str | None:
    """Say so where validation was best well before the end and has clearly fallen since."""
    values = [value for _, value in curve]
    best = max(range(len(values)), key=values.__getitem__)
    lost = values[best] - median(values[-3:])
    if best >= (1 - LATE) * len(values) or lost <= FALLEN * (values[best] - min(values[: best + 1])):
        return None
    return (
        f"overfitting: valid/elbo was best at epoch {curve[best][0]:g} and has lost {lost:.3g} nats since; "
        "stop earlier (trainer.early_stopping=10), take a smaller model, or more data"
    )


def _still_rises(curve: Sequence[tuple[float, float]]) -> str | None:
    """Say so where the last fifth of the run lies clearly above the fifth before it."""
    values = [value for _, value in curve]
    few = max(2, round(LATE * len(values)))
    gain = median(values[-few:]) - median(values[-2 * few : -few])
    if gain <= RISING * (max(values) - values[0]):
        return None
    return (
        f"not converged: valid/elbo still rose by {gain:.3g} nats over the last fifth of the run; "
        "train longer (trainer.epochs)"
    )
