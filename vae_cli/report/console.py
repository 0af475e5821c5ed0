"""The terminal: what was built, a live bar, plain lines where there is no terminal, a table at the end."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vae_cli.system.output import bound_sign, mute, print_in_any_encoding, writable

ORDER = (
    "log_likelihood",
    "elbo",
    "reconstruction",
    "kl",
    "posterior_gap",
    "effective_samples",
    "mutual_information",
    "marginal_kl",
    "active_units",
    "bits_per_dim",
)
PACE = 0.1  # seconds between movements of the bar, at least
SPLITS = ("train", "valid", "test")


class Lasting(Console):
    """A console whose closed pipe (`| head`) does not stop the run: the log has every line."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; if stdout is full, print nothing from then on."""
        try:
            super().print(*objects, **options)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Print nothing from here on; rich's own method would end the process."""
        self.quiet = True
        mute()


class Terminal:
    """Prints lines, and keeps a copy of them in a log file.

    Args:
        log: the file.
        fresh: whether what an earlier command left there is void.
    """

    def __init__(self, log: Path, *, fresh: bool = False):
        print_in_any_encoding()
        self.console = Lasting(soft_wrap=True, highlight=False, emoji=False)
        self.log = log
        if fresh:
            log.unlink(missing_ok=True)
        self.progress: Progress | None = None
        self.moved = 0.0
        self.task: TaskID | None = None

    def line(self, text: str, style: str = "") -> None:
        """Print a line, above the bar where there is one."""
        text = writable(text)
        self.console.print(text, style=style, markup=False)
        with (
            contextlib.suppress(OSError),
            self.log.open("a", encoding="utf-8") as file,
        ):  # a full disk costs the copy, not the run
            file.write(text + "\n")

    def begin(self, step: int, total: int) -> None:
        """Start the bar, in a terminal."""
        if not self.console.is_terminal:
            return
        columns = TextColumn("{task.fields[epoch]}"), BarColumn(24), TextColumn("{task.fields[numbers]}")
        self.progress = Progress(*columns, TimeRemainingColumn(), console=self.console, refresh_per_second=4)
        self.task = self.progress.add_task("", total=total, completed=step, epoch="epoch 0", numbers="")
        self.progress.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        now = time.perf_counter()
        if self.progress is not None and self.task is not None and now - self.moved > PACE:
            self.moved = now
            self.progress.update(self.task, completed=step)

    def numbers(self, epoch: float, scalars: dict[str, float]) -> None:
        """Show the terms of the last interval next to the bar."""
        if self.progress is None or self.task is None:
            return
        shown = " ".join(
            f"{label} {scalars[f'train/{name}']:.2f}"
            for label, name in (
                ("ELBO", "elbo"),
                ("rec", "reconstruction"),
                ("KL", "kl"),
                ("weight", "kl_weight"),
            )
            if f"train/{name}" in scalars
        )
        self.progress.update(self.task, epoch=f"epoch {epoch:.1f}", numbers=shown)

    def end(self) -> None:
        """Remove the bar."""
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show progress within the block; what is yielded takes the amount done."""
        with Progress(
            TextColumn(title), BarColumn(24), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(),
            console=self.console, disable=not self.console.is_terminal, transient=True,
        ) as progress:  # fmt: skip
            task = progress.add_task("", total=total)
            yield lambda done: progress.update(task, completed=done)

    def numbers_of(self, summary: dict[str, Any], split: str, title: str) -> None:
        """Print every number of a split, a row each, with its standard error where there is one."""
        table = _titled(title)
        table.add_column("nats for one example, counts and shares", justify="left")
        table.add_column(split, justify="right")
        for key, value in summary.items():
            name = key.partition("/")[2]
            if isinstance(value, (int, float)) and not name.endswith("_stderr"):
                table.add_row(Text(name), bound_sign(summary, split, name) + _cell(value, summary.get(f"{key}_stderr")))
        self.console.print(table)

    def table(self, summary: dict[str, float], title: str) -> None:
        """Print the results: a row a metric, a column a split."""
        splits, rows = results(summary)
        table = _titled(title)
        for column in ("nats for one example", *splits):
            table.add_column(column, justify="left" if column not in splits else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)


def _titled(title: str) -> Table:
    """Return an empty table under a title, which is shown literally: it may name folders."""
    return Table(title=Text(writable(title), "table.title"), title_justify="left")


def results(summary: dict[str, Any], order: Iterable[str] = SPLITS) -> tuple[list[str], list[list[str]]]:
    """Return the splits of a summary, and its rows: the name of a metric and its value on each split."""
    splits = [split for split in order if f"{split}/elbo" in summary]
    k = next((summary[key] for key in summary if key.endswith("/log_likelihood_samples")), None)
    rows = []
    for name in ORDER:
        values = [summary.get(f"{split}/{name}") for split in splits]
        if any(value is not None for value in values):
            errors = [summary.get(f"{split}/{name}_stderr") for split in splits]
            signs = [bound_sign(summary, split, name) for split in splits]
            cells = [s + _cell(v, e) for s, v, e in zip(signs, values, errors, strict=True)]
            rows.append([f"{name} (K = {k})" if name == "log_likelihood" else name, *cells])
    return splits, rows


def _cell(value: float | None, error: float | None) -> str:
    """Write a number, with its standard error where there is one."""
    if value is None:
        return ""
    shown = f"{value:.3f}" if isinstance(value, float) else str(value)
    return shown if error is None or math.isnan(error) else f"{shown} ± {error:.3f}"  # of one example there is none
