"""vae-compare: finished runs side by side, with the settings they differ in. No torch."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from vae_cli.commands.jobs import Run, find, missing
from vae_cli.commands.shared import guarded
from vae_cli.system.disk import write_csv
from vae_cli.system.errors import UserError, suggest
from vae_cli.system.interruption import begin
from vae_cli.system.output import bound_sign, number, say, writable

METRICS = ("test/log_likelihood", "test/elbo", "valid/elbo", "train/elbo")  # the first that every run has is ranked by
SHOWN = ("log_likelihood", "elbo", "kl", "reconstruction", "active_units", "mutual_information")
SEED = "seed"
LESS_IS_BETTER = ("bits_per_dim", "posterior_gap", "marginal_kl", "frechet_distance", "fid", "gap")


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone."""

    settings: dict[str, Any]
    runs: list[Run]

    def values(self, metric: str) -> list[float]:
        """Return a metric of each run that has it."""
        found = (number(run.numbers.get(metric)) for run in self.runs)
        return [value for value in found if value is not None]

    def mean(self, metric: str) -> float:
        """Return the mean of a metric over seeds; nan where no run has it."""
        values = self.values(metric)
        return mean(values) if values else math.nan

    def sign(self, metric: str) -> str:
        """Return '≥ ' or '≤ ' where a metric of one of the runs is bounded by the number of examples, else ''."""
        split, _, name = metric.partition("/")
        return max(bound_sign(run.numbers, split, name) for run in self.runs)

    def having(self, metric: str) -> str:
        """Return how many of the runs have a metric, in words."""
        n, every = len(self.values(metric)), len(self.runs)
        return str(every) if n == every else f"{n} of {every}"


def main() -> None:
    """Run vae-compare; print errors as one line and exit with 1."""
    parser = argparse.ArgumentParser(prog="vae-compare", description="Compare finished runs, or the jobs of a sweep.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders of sweeps")
    parser.add_argument("--metric", help=f"to sort by, best first; by default the first that every run has: {METRICS}")
    parser.add_argument("--output", help="folder for comparison.csv and the figures; by default the sweep's, or none")
    arguments = parser.parse_args()

    def body() -> None:
        begin()
        compare(arguments.runs, arguments.metric, arguments.output)

    guarded("vae-compare", body)


def compare(paths: Sequence[str], metric: str | None = None, output: str | None = None) -> list[Row]:
    """Print runs as a table, best first, write comparison.csv and figures, and return the rows.

    Raises:
        UserError: there are no runs, they lack the metric, or their numbers cannot be compared.
    """
    found = {run.folder.resolve(): run for path in paths for run in find(Path(path))}
    runs = list(found.values())
    refuse_incomparable(runs)
    chosen = _metric(runs, metric)
    rows = ranked(group(runs), chosen)
    varied = [key for key in varying(runs) if key != SEED]
    _print(rows, varied, chosen, str(runs[0].numbers.get("measure", "")))
    for line in (line for path in paths for line in missing(Path(path))):
        print(writable(line))
    folder = Path(output) if output else Path(paths[0]) if not (Path(paths[0]) / "summary.json").is_file() else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in (_csv(rows, varied, folder / "comparison.csv"), *_figures(rows, varied, chosen, folder)):
            say(str(path))
    return rows


def varying(runs: Sequence[Run]) -> list[str]:
    """Return the settings that not all runs have the same value of."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [key for key in keys if len({_same(run.settings.get(key)) for run in runs}) > 1 and key != "resume"]


def _same(value: Any) -> str:
    """Return a text that equal settings share: 1 and 1.0 are equal."""
    found = number(value)
    return str(value) if found is None else repr(found)


def group(runs: Sequence[Run]) -> list[Row]:
    """Return runs in groups that differ in nothing but their seed."""
    varied = [key for key in varying(runs) if key != SEED]
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(_same(run.settings.get(key)) for key in varied), []).append(run)
    return [Row({key: each[0].settings.get(key) for key in varied}, each) for each in groups.values()]


def ranked(rows: Sequence[Row], metric: str) -> list[Row]:
    """Return rows with the best by a metric first, and those last that lack it."""
    sign = 1.0 if metric.endswith(LESS_IS_BETTER) else -1.0
    having = [row for row in rows if row.values(metric)]
    lacking = [row for row in rows if not row.values(metric)]
    return [*sorted(having, key=lambda row: sign * row.mean(metric)), *lacking]


def refuse_incomparable(runs: Sequence[Run]) -> None:
    """Raise a UserError where runs measure different things."""
    for run in runs[1:]:
        if run.measure != runs[0].measure:
            ours, theirs = ((r.measure[0], *r.measure[1:]) for r in (runs[0], run))
            differing = next(f"{a} and {b}" for a, b in zip(ours, theirs, strict=True) if a != b)
            raise UserError(f"{runs[0].folder} and {run.folder}: their numbers cannot be compared ({differing})")


def _metric(runs: Sequence[Run], metric: str | None) -> str:
    if metric is None:
        common = [name for name in METRICS if all(name in run.numbers for run in runs)]
        if not common:
            raise UserError(f"the runs have none of {', '.join(METRICS)} in common; name one by --metric")
        measured = [name for name in common if any(number(run.numbers[name]) is not None for run in runs)]
        return (measured or common)[0]
    known = {key for run in runs for key, value in run.numbers.items() if number(value) is not None}
    if metric not in known:
        raise UserError(f"--metric={metric}: no run has it{suggest(metric, known)}")
    return metric


def _print(rows: Sequence[Row], varied: Sequence[str], metric: str, measure: str) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    split = metric.partition("/")[0]
    columns = [metric, *(f"{split}/{name}" for name in SHOWN if f"{split}/{name}" != metric)]
    columns = [name for name in columns if any(row.values(name) for row in rows)]
    title = writable(f"{split}: {measure}; mean ± standard deviation over seeds")
    table = Table(title=Text(title, "table.title"), title_justify="left")
    shared = [key for key in varied if all(key in run.settings for row in rows for run in row.runs)]
    for column in (*map(_short, shared), "seeds"):
        table.add_column(Text(writable(column)), no_wrap=True)
    for column in columns:
        table.add_column(Text(writable(column.partition("/")[2])), justify="right", no_wrap=True)
    for row in rows:
        cells = [_value(row.settings[key]) for key in shared] + [row.having(metric)]
        table.add_row(*(Text(writable(cell)) for cell in (*cells, *(_cell(row, name, metric) for name in columns))))
    console = Console()
    console.width = max(console.width, Console(width=1000).measure(table).maximum)
    console.print(table, soft_wrap=not console.is_terminal)


def _short(key: str) -> str:
    return key.removesuffix("._target_")


def _value(value: Any) -> str:
    return value.rpartition(".")[2] if isinstance(value, str) and value.startswith("vae_cli.") else str(value)


def _cell(row: Row, name: str, metric: str) -> str:
    """Write a number over seeds; how many seeds have it, where they are not those of the metric, stands beside it."""
    values = row.values(name)
    if not values:
        return ""
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    having = row.having(name)
    return f"{row.sign(name)}{mean(values):.3f}{spread}" + ("" if having == row.having(metric) else f" ({having})")


def _csv(rows: Sequence[Row], varied: Sequence[str], path: Path) -> Path:
    """Write one line per run: its settings that vary, its numbers, its folder."""
    runs = [run for row in rows for run in row.runs]
    numbers = dict.fromkeys(k for run in runs for k, v in run.numbers.items() if number(v) is not None)
    table: list[Sequence[object]] = [[*map(_short, varied), SEED, *numbers, "folder"]]
    for run in runs:
        settings = [_value(run.settings.get(key)) for key in (*varied, SEED)]
        found = [run.numbers[key] if number(run.numbers.get(key)) is not None else "" for key in numbers]
        table.append([*settings, *found, str(run.folder)])
    return write_csv(path, table)


def _figures(rows: Sequence[Row], varied: Sequence[str], metric: str, folder: Path) -> list[Path]:
    """Draw rate against distortion, and the metric over every setting that varies and is a number."""
    from vae_cli.report import figures

    split = metric.partition("/")[0]
    points = [(row.mean(f"{split}/kl"), -row.mean(f"{split}/reconstruction"), _label(row, varied)) for row in rows]
    known = [point for point in points if math.isfinite(point[0] + point[1])]
    paths = [figures.rate_distortion(known, folder / "rate_distortion.png")]
    for key in varied:
        if all(number(row.settings[key]) is not None for row in rows):
            name = f"{metric.replace('/', '_')}_by_{key.replace('.', '_')}.png"
            paths.append(figures.over_setting(_curves(rows, varied, key, metric), key, metric, folder / name))
    return paths


def _curves(rows: Sequence[Row], varied: Sequence[str], key: str, metric: str) -> list[Any]:
    """Return a metric over a setting: a curve for each choice of all the other settings."""
    others = [each for each in varied if each != key]
    curves: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        curves.setdefault(tuple(_same(row.settings[each]) for each in others), []).append(row)
    return [
        (_label(each[0], others), [(number(row.settings[key]), row.values(metric)) for row in each])
        for each in curves.values()
    ]


def _label(row: Row, varied: Sequence[str]) -> str:
    return ", ".join(f"{_short(key).rpartition('.')[2]}={_value(row.settings[key])}" for key in varied)


if __name__ == "__main__":
    main()
