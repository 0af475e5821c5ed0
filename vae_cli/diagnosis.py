"""What the curves of a finished run say of it, for the person who did not look at them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import median

FEW = 8  # validations below which a curve says nothing
LATE = 0.2  # the share of a run that counts as its end
LEAST = 0.1  # nats that nobody needs to be told of
RISING = 0.02  # share of the whole climb that a run still gains at its end while it has not converged
FALLEN = 0.02  # share of the whole climb that is lost after the best validation when a model overfits
SURE = 4.0  # standard errors that a change must exceed

Curve = list[tuple[float, float]]  # (epoch, value)


def warnings(lines: Sequence[dict[str, float]], settled: float) -> list[str]:
    """Return what is amiss with a run, from the lines of its metrics.jsonl.

    Args:
        lines: of training and validation, in order.
        settled: the epoch from which the KL weight stays as it is; the ELBO of before says little.
    """
    curves = {key: _curve(lines, key, settled) for key in ("train/elbo", "train/loss", "valid/elbo")}
    if len(curves["valid/elbo"]) < FEW:
        return []
    return [line for line in (_falls(curves), _still_rises(curves["valid/elbo"])) if line]


def _curve(lines: Sequence[dict[str, float]], key: str, settled: float) -> Curve:
    return [(line["epoch"], line[key]) for line in lines if key in line and line["epoch"] >= settled]


def _falls(curves: dict[str, Curve]) -> str | None:
    """Say so where validation was best well before the end and has clearly fallen since, and why."""
    valid = curves["valid/elbo"]
    values = [value for _, value in valid]
    smooth = [median(values[max(0, k - 1) : k + 2]) for k in range(len(values))]
    best = max(range(len(smooth)), key=smooth.__getitem__)
    lost = smooth[best] - median(values[-3:])
    least = max(LEAST, FALLEN * (smooth[best] - min(smooth[: best + 1])), SURE * _noise(values))
    if best >= (1 - LATE) * len(values) or lost <= least:
        return None
    epoch = valid[best][0]
    if _rose(curves["train/loss"], epoch):
        return (
            f"training went astray: since epoch {epoch:g} train/loss has risen and valid/elbo lost {lost:.3g} nats; "
            "lower optimizer.lr, or set trainer.grad_clip"
        )
    if curves["train/elbo"] and not _rose(curves["train/elbo"], epoch):
        return None  # the objective has its own ends: free bits, a large KL weight
    return (
        f"overfitting: valid/elbo was best at epoch {epoch:g} and has lost {lost:.3g} nats since, while train/elbo "
        "rose; a smaller model or more data helps (trainer.early_stopping saves the time)"
    )


def _rose(curve: Curve, epoch: float) -> bool:
    """Whether a curve is higher at its end than it was about an epoch."""
    before, after = ([v for e, v in curve if (e <= epoch) == early] for early in (True, False))
    return bool(before and after) and median(after[-3:]) > median(before[-3:])


def _still_rises(valid: Curve) -> str | None:
    """Say so where the last fifth of the run lies clearly above the fifth before it."""
    values = [value for _, value in valid]
    few = max(2, round(LATE * len(values)))
    gain = median(values[-few:]) - median(values[-2 * few : -few])
    error = _noise(values) * (2.0 / few) ** 0.5
    if gain <= max(LEAST, RISING * (max(values) - values[0]), SURE * error):
        return None
    return (
        f"not converged: valid/elbo still rose by {gain:.3g} nats over the last fifth of the run; "
        "train longer (trainer.epochs)"
    )


def _noise(values: Sequence[float]) -> float:
    """Return the standard deviation of a curve about its trend, from its second differences in the later half."""
    late = values[len(values) // 2 :]
    steps = [b - a for a, b in pairwise(late)]
    return median(abs(b - a) for a, b in pairwise(steps)) / (0.6745 * 6.0**0.5) if len(steps) > 1 else 0.0
