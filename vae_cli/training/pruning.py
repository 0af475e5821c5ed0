"""The median stopping rule: a job of a sweep that is far behind its finished siblings is stopped. No torch.

It reads the files that the jobs of a sweep write next to one another, so it works with every launcher.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from statistics import fmean, median

from vae_cli.report.reporter import logged
from vae_cli.system.disk import read_object
from vae_cli.system.errors import UserError

KEY = "valid/elbo"  # the one curve that all runs of the same data and likelihood have in common
CLOSE = 1e-3  # epochs that are the same: files hold them to four digits

Curve = list[tuple[float, float]]  # (epoch, value)


class MedianRule:
    """Stops a run whose best value so far is below the median of its finished siblings' running averages.

    (Golovin et al. 2017, section 3.2.) A running average is the mean of a sibling's values up to the same epoch. It
    lags behind its curve, so that only a hopeless run falls below the median. Siblings that were stopped themselves,
    failed, or measure something else do not count.

    Args:
        folder: of the run; its siblings are the folders beside it.
        measure: what the run's numbers mean.
        jobs: finished siblings before the rule acts.
        earliest: epoch before which it does not.
    """

    def __init__(self, folder: Path, *, measure: str, jobs: int, earliest: float):
        self.folder, self.measure, self.jobs, self.earliest = folder, measure, jobs, earliest
        self.siblings: dict[Path, Curve] = {}  # of the finished ones; empty where one does not count

    def __call__(self, epoch: float) -> str | None:
        """Return why the run is to stop at an epoch, or None."""
        own = _until(epoch, _curve(self.folder))
        if epoch + CLOSE < self.earliest or not own:
            return None
        self._look_around()
        averages = [fmean(values) for curve in self.siblings.values() if (values := _until(epoch, curve))]
        if len(averages) < self.jobs or max(own) >= median(averages):
            return None
        return (
            f"given up at epoch {epoch:g} (trainer.prune): {KEY} came to {max(own):.3f} at best, less than "
            f"{median(averages):.3f}, the median of what {len(averages)} finished jobs had on average by then"
        )

    def _look_around(self) -> None:
        """Read what siblings have left since the last time."""
        for path in self.folder.parent.glob("*/summary.json"):
            if path.parent != self.folder and path.parent not in self.siblings:
                with suppress(UserError):  # it goes on, just now
                    summary = read_object(path)
                    counts = summary.get("stopped_by") != "prune" and summary.get("measure") == self.measure
                    self.siblings[path.parent] = _curve(path.parent) if counts else []


def _curve(folder: Path) -> Curve:
    return [(line["epoch"], line[KEY]) for line in logged(folder / "metrics.jsonl") if KEY in line]


def _until(epoch: float, curve: Curve) -> list[float]:
    return [value for each, value in curve if each <= epoch + CLOSE]
