"""Warnings that the curves of a finished run give: overfitting, not converged, too short. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import numpy as np

FEW = 8  # validations below which a curve is judged by its ends alone
FEW_STEPS = 300  # steps in which hardly a model learns
LATE = 0.2  # the share of a run that counts as its end
LEAST = 0.1  # nats: smaller differences are not reported
CLEAR = 1.0  # nats that must be gained where there are few validations
RISING = 0.02  # share of the whole climb that a run still gains at its end while it has not converged
RISING_OF_FEW = 0.1  # the same, between the last two of few validations
FALLEN = 0.002  # share of the whole climb that must be lost after the best validation
SURE = 12.5  # twice the log-likelihood by which a rise or fall must explain a curve better than noise does
BRIEF = 20  # validations below which autocorrelation cannot be estimated
SURE_OF_BRIEF = 10.0  # standard deviations of the noise from one validation to the next that count as clear there
FITTED = 5  # values that are used up by what is fitted: first value, level, trend, where it starts, autocorrelation
LONGEST = 0.95  # the largest autocorrelation that noise is taken to have
FLOOR = 1e-3  # nats of noise that every curve is taken to have
SHAPES = (1 / 3, 2 / 3, 1.0)  # of the time from the best validation to the end, in which the fall may have happened

Curve = list[tuple[float, float]]  # (epoch, value)


def warnings(lines: Sequence[dict[str, float]], settled: float) -> list[str]:
    """Return the warnings about a run, from the lines of its metrics.jsonl.

    Args:
        lines: of training and validation, in order.
        settled: the epoch from which the KL weight stays as it is; the ELBO of before says little.
    """
    curves = {key: _curve(lines, key, settled) for key in ("train/elbo", "train/loss", "valid/elbo")}
    valid = curves["valid/elbo"]
    judged = (_falls(curves), _still_rises(valid)) if len(valid) >= FEW else (_rose_to_the_end(curves),)
    return [line for line in (*judged, _few_steps(lines)) if line]


def _curve(lines: Sequence[dict[str, float]], key: str, settled: float) -> Curve:
    return [(line["epoch"], line[key]) for line in lines if key in line and line["epoch"] >= settled]


def _few_steps(lines: Sequence[dict[str, float]]) -> str | None:
    """Return a warning if a run ended before a model can have learned."""
    steps = max((int(line["step"]) for line in lines if "step" in line), default=FEW_STEPS)
    if steps >= FEW_STEPS:
        return None
    return (
        f"only {steps} steps: hardly a model learns in fewer than some thousand; "
        "train longer (trainer.epochs) or in smaller batches (trainer.batch_size)"
    )


def _falls(curves: dict[str, Curve]) -> str | None:
    """Return a warning if validation was best well before the end and has clearly fallen since, with the reason."""
    valid = curves["valid/elbo"]
    values = np.array([value for _, value in valid])
    smooth = _smooth(values, max(3, len(values) // 10) | 1)
    best = int(smooth[: int(np.ceil((1 - LATE) * len(values)))].argmax())
    lost = float(smooth[best] - smooth[-1])
    least = max(LEAST, FALLEN * float(smooth[best] - smooth[: best + 1].min()))
    if lost <= least or not _clearly_falls(values, best, lost):
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


def _clearly_falls(values: np.ndarray, best: int, lost: float) -> bool:
    """Whether a fall after the best validation explains a curve [n] better than noise about a level does.

    What came before the curve first reached the level of its end, the climb, does not count.
    """
    smooth = _smooth(values, 3)
    first = min(int((smooth >= smooth[best] - lost).argmax()), best, len(values) - FEW)
    late, peak = values[first:], best - first
    if len(values) < BRIEF:
        return lost > SURE_OF_BRIEF * _noise(late)
    near = len(late) // 10
    starts = {max(0, peak - near), peak, min(peak + near, int((1 - LATE) * len(late)))}
    return max(_evidence(late, -_ramp(len(late), start, share)) for start in starts for share in SHAPES) > SURE


def _noise(values: np.ndarray) -> float:
    """Return the standard deviation of a curve [n] about its trend, from its second differences."""
    return max(FLOOR, float(np.sqrt((np.diff(values, 2) ** 2).mean() / 6.0)))


def _ramp(n: int, start: int, share: float) -> np.ndarray:
    """Return 0 up to a start, then a rise to 1 within a share of what is left of n values."""
    length = max(3.0, (n - 1 - start) * share)
    return np.clip((np.arange(n) - start) / length, 0.0, 1.0)


def _evidence(values: np.ndarray, trend: np.ndarray) -> float:
    """Return twice the log-likelihood ratio of level + k · trend, k > 0, and a level, both with noise AR(1).

    The noise of validations is autocorrelated: weights wander slowly, the draws are the same each time. A wandering
    curve looks like a trend unless its autocorrelation is estimated along with it.
    """
    level, _ = _fit(values, np.ones((len(values), 1)))
    moved, slope = _fit(values, np.stack([np.ones(len(values)), trend], 1))
    return (len(values) - FITTED) * float(np.log(level / moved)) if slope > 0 else 0.0


def _fit(values: np.ndarray, shapes: np.ndarray) -> tuple[float, float]:
    """Return the residual sum of squares of an autoregression about shapes [n, k], and the last one's coefficient."""
    now, before, shapes = values[1:], values[:-1], shapes[1:]
    found = np.linalg.lstsq(np.column_stack([shapes, before]), now, rcond=None)[0]
    rho = float(np.clip(found[-1], 0.0, LONGEST))
    rest = now - rho * before
    found = np.linalg.lstsq(shapes, rest, rcond=None)[0]
    return float(((rest - shapes @ found) ** 2).sum()) + len(now) * FLOOR**2, float(found[-1])


def _smooth(values: np.ndarray, width: int) -> np.ndarray:
    """Return the moving mean of values [n] over an odd window, which is shorter at the ends."""
    half = width // 2
    return np.array([values[max(0, k - half) : k + half + 1].mean() for k in range(len(values))])


def _rose(curve: Curve, epoch: float) -> bool:
    """Whether a curve is higher at its end than it was about an epoch."""
    before, after = ([v for e, v in curve if (e <= epoch) == early] for early in (True, False))
    return bool(before and after) and median(after[-3:]) > median(before[-3:])


def _still_rises(valid: Curve) -> str | None:
    """Return a warning if the last fifth of the run lies clearly above the fifth before it."""
    values = np.array([value for _, value in valid])
    few = max(2, round(LATE * len(values)))
    gain = float(np.median(values[-few:]) - np.median(values[-2 * few : -few]))
    if gain <= max(LEAST, RISING * float(values.max() - values[0])) or not _clearly_rises(values, gain):
        return None
    return (
        f"not converged: valid/elbo still rose by {gain:.3g} nats over the last fifth of the run; "
        "train longer (trainer.epochs)"
    )


def _clearly_rises(values: np.ndarray, gain: float) -> bool:
    """Whether a rise explains the later half of a curve [n] better than noise about a level does."""
    late = values[-max(FEW, len(values) // 2) :]
    if len(values) < BRIEF:
        return gain > SURE_OF_BRIEF * _noise(late)
    return _evidence(late, _ramp(len(late), 0, 1.0)) > SURE


def _rose_to_the_end(curves: dict[str, Curve]) -> str | None:
    """Return a warning if few validations, or the training curve, still rose by much at the end."""
    valid, train = ([value for _, value in curves[key]] for key in ("valid/elbo", "train/elbo"))
    third = len(train) // 3
    if len(valid) > 1:
        key, gain, climb = "valid/elbo", valid[-1] - valid[-2], valid[-1] - valid[0]
    elif third > 0:
        means = [fmean(part) for part in (train[:third], train[-2 * third : -third], train[-third:])]
        key, gain, climb = "train/elbo", means[2] - means[1], means[2] - means[0]
    else:
        return None
    if gain <= max(CLEAR, RISING_OF_FEW * climb):
        return None
    return f"not converged: {key} still rose by {gain:.3g} nats at the end of the run; train longer (trainer.epochs)"
