"""What the curves of a finished run say of it, for the person who did not look at them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

FEW = 10  # validations below which a curve says nothing
LATE = 0.2  # the share of a run that counts as its end
LEAST = 0.1  # nats that nobody needs to be told of
RISING = 0.02  # share of the whole climb that a run still gains at its end while it has not converged
FALLEN = 0.02  # share of the whole climb that is lost after the best validation when a model overfits

Curve = list[tuple[float, float]]  # (epoch, value)


def warnings(lines: Sequence[dict[str, float]], settled: float) -> list[str]:
    """Return what is amiss with a run, from the lines of its metrics.jsonl.

    Args:
        lines: of training and validation, in order.
        settled: the epoch from which the KL weight stays as it is; the ELBO of before says little.
    """
    train, valid = (_curve(lines, f"{split}/elbo", settled) for split in ("train", "valid"))
    if len(valid) < FEW:
        return []
    return [line for line in (_overfits(train, valid), _still_rises(valid)) if line]


def _curve(lines: Sequence[dict[str, float]], key: str, settled: float) -> Curve:
    return [(line["epoch"], line[key]) for line in lines if key in line and line["epoch"] >= settled]


def _overfits(train: Curve, valid: Curve) -> str | None:
    """Say so where validation was best well before the end and has clearly fallen since, while training rose."""
    values = [value for _, value in valid]
    best = max(range(len(values)), key=values.__getitem__)
    lost = values[best] - median(values[-3:])
    if best >= (1 - LATE) * len(values) or lost <= max(LEAST, FALLEN * (values[best] - min(values[: best + 1]))):
        return None
    before = [value for epoch, value in train if epoch <= valid[best][0]][-3:]
    after = [value for epoch, value in train if epoch > valid[best][0]][-3:]
    if before and after and median(after) <= median(before):
        return None  # both fell: the objective has its own ends (free bits, a large KL weight), or training is unsteady
    return (
        f"overfitting: valid/elbo was best at epoch {valid[best][0]:g} and has lost {lost:.3g} nats since; "
        "stop earlier (trainer.early_stopping=10), take a smaller model, or more data"
    )


def _still_rises(valid: Curve) -> str | None:
    """Say so where the last fifth of the run lies clearly above the fifth before it."""
    values = [value for _, value in valid]
    few = max(2, round(LATE * len(values)))
    gain = median(values[-few:]) - median(values[-2 * few : -few])
    if gain <= max(LEAST, RISING * (max(values) - values[0])):
        return None
    return (
        f"not converged: valid/elbo still rose by {gain:.3g} nats over the last fifth of the run; "
        "train longer (trainer.epochs)"
    )
