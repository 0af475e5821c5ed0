"""One reporter for a run: hands each event to the console, TensorBoard, metrics.jsonl and the figures."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from vae_cli.config import as_chosen
from vae_cli.data import Resident, Spec
from vae_cli.metrics import Evaluation, evaluation_mode
from vae_cli.report import page, pictures
from vae_cli.report.board import Board
from vae_cli.report.console import Terminal
from vae_cli.system.disk import Unwritable, not_written, write, written
from vae_cli.system.errors import DEBUGGING
from vae_cli.system.output import number
from vae_cli.vae import VAE

PROJECTED = 1000  # codes at most in the Projector tab
CONSTANT = ("_samples", "_examples", "_bound")  # ends of names of what was set or given: no results
PACE = 1.0  # seconds between plain lines at least, where there is no terminal


class Reporter:
    """Writes what a run reports into its folder and to the terminal.

    Args:
        folder: of the run.
        spec: of the data.
        conditional: whether the model is given labels.
        resumed_at: the step a run goes on from; what was written after it is void.
        refuse_to_go_on_without: called now and then; raises a UserError once the folder is no longer there.
    """

    def __init__(
        self,
        folder: Path,
        spec: Spec,
        *,
        conditional: bool,
        resumed_at: int | None = None,
        refuse_to_go_on_without: Callable[[], None] = lambda: None,
    ):
        self.folder, self.spec, self.conditional = folder, spec, conditional
        self.refuse_to_go_on_without = refuse_to_go_on_without
        self.terminal = Terminal(folder / "train.log")
        self.metrics = folder / "metrics.jsonl"
        self.warnings: list[str] = []
        self._open(-1 if resumed_at is None else resumed_at)

    def rewind(self, step: int) -> None:
        """Drop what was written after a step: the run has gone back to it."""
        self._close()
        self._open(step)

    def _open(self, step: int) -> None:
        """Write on from a step; what is there of after it is void."""
        if self.metrics.is_file():
            _truncate(self.metrics, step)
        with written(self.metrics):
            self.lines = self.metrics.open("a", buffering=1)
        self.board: Board | None = None
        self.attempt("tensorboard", lambda: self._open_board(step))

    def _open_board(self, step: int) -> None:
        self.board = Board(self.folder / "tensorboard", purge_step=step + 1)

    def line(self, text: str) -> None:
        """Print a line."""
        self.terminal.line(text)

    def warn(self, text: str) -> None:
        """Print a warning, and keep it for the summary."""
        self.warnings += [text] if text not in self.warnings else []
        self.terminal.line(f"warning: {text}", style="yellow")

    def attempt(self, what: str, write: Callable[[], None]) -> None:
        """Write something that a run can do without; if that fails, warn once and go on."""
        try:
            write()
        except Exception as error:  # no picture is worth a run's numbers
            if DEBUGGING and not isinstance(error, (OSError, Unwritable)):
                raise
            line = not_written(what, error)
            if line not in self.warnings:
                self.warn(line)

    def begin(self, step: int, total: int) -> None:
        """Training begins; an earlier summary of the run is removed."""
        (self.folder / "summary.json").unlink(missing_ok=True)
        self.total, self.first, self.began, self.spoke = total, step, time.perf_counter(), 0.0
        self.terminal.begin(step, total)

    def advance(self, step: int) -> None:
        """A step is done."""
        self.terminal.advance(step)

    def scalars(self, step: int, epoch: float, scalars: dict[str, float]) -> None:
        """Scalars of training, once every log interval."""
        self.refuse_to_go_on_without()
        self._write(step, epoch, scalars)
        self.terminal.numbers(epoch, scalars)

    def validation(
        self, step: int, epoch: float, result: Evaluation, split: str, weight: float, beside: dict[str, float]
    ) -> None:
        """A validation is done; without validation examples, a look at training examples (`split` says which)."""
        if split == "valid":
            self._write(step, epoch, result.scalars(split) | beside)
        self._on_board(lambda board: board.histogram(f"{split}/kl_by_dimension", result.kl_by_dimension, step))
        now = time.perf_counter()
        if self.terminal.progress is None and (now - self.spoke > PACE or step == self.total):
            self.spoke = now
            left = (now - self.began) / max(1, step - self.first) * (self.total - step)
            self.terminal.line(
                f"epoch {epoch:g} step {step}/{self.total}: {split} ELBO {result.elbo:.3f} = reconstruction "
                f"{result.reconstruction:.3f} - KL {result.kl:.3f}, active units {result.active_units}, "
                f"KL weight {weight:g}, {left:.0f} s left"
            )

    def pictures(self, step: int, vae: VAE, data: Resident, kl: Tensor) -> None:
        """Reconstructions, samples and traversals on their way; `kl` [D] orders the traversals."""
        if not pictures.is_picture(self.spec.shape):
            return  # what is no picture is drawn once, with the report
        with evaluation_mode(vae):
            for tag, x in (
                ("reconstructions", pictures.reconstructions(vae, data)),
                ("samples", pictures.samples(vae, data)),
                ("traversals", pictures.traversals(vae, data, kl)[0]),
            ):
                self._show(tag, pictures.grid(x, self.spec), step)

    def codes(self, step: int, vae: VAE, data: Resident) -> None:
        """The codes of a finished run, for TensorBoard's Projector tab."""
        with evaluation_mode(vae):
            codes, labels = pictures.codes(vae, data, PROJECTED)
        if (board := self.board) is not None:
            images = pictures.thumbnails(data, len(codes), self.spec, board.sprite_side(len(codes)))
            board.codes(codes, page.label_names(labels, self.spec), images, step)

    def figures(self, vae: VAE, data: Resident, result: Evaluation) -> None:
        """Draw the figures of a finished run."""
        from vae_cli.report import figures, kl_map

        folder = self.folder / "figures"
        folder.mkdir(exist_ok=True)
        with evaluation_mode(vae):
            self._draw_examples(vae, data, folder)
        figures.terms(self.history(), folder / "elbo.png")
        figures.kl_by_dimension(result.kl_by_dimension, result.units, folder / "kl_by_dimension.png")
        if (grid := kl_map.grid(result.kl_by_dimension, vae.latent.layout.shape)) is not None:
            kl_map.write(grid, folder / "kl_map.png")

    def _draw_examples(self, vae: VAE, data: Resident, folder: Path) -> None:
        from vae_cli.report import drawing

        x, again = (self.spec.restore(each.cpu()) for each in pictures.reconstructions(vae, data))
        display = vae.likelihood.display
        names = ("data", f"{display} of p(x|z)")
        drawing.pairs(self.spec, x, again, folder / "reconstructions.png", "reconstructions", names)
        title = f"{display}s of p(x|z) for draws of z from the prior"
        self._draw(pictures.samples(vae, data), folder / "samples.png", title)
        if self.conditional:
            x, rows = pictures.class_samples(vae, data, self.spec)
            kind = "row" if pictures.is_picture(self.spec.shape) else "block"
            title = f"{display}s of p(x|z,c) for draws of z from the prior, one {kind} {self._each(len(rows))}"
            self._draw(x, folder / "class_samples.png", title, rows)

    def _draw(self, x: Tensor, path: Path, title: str, rows: Sequence[str] = ()) -> None:
        """Draw examples [rows, columns, *shape] as the model sees them."""
        from vae_cli.report import drawing

        drawing.grid(self.spec, list(self.spec.restore(x.cpu())), path, title, rows)

    def _each(self, shown: int) -> str:
        """Return a name for each of so many rows."""
        classes = self.spec.classes
        some = f" (the first {shown} of {classes})" if classes and shown < classes else ""
        return f"a class{some}" if classes else "an attribute vector"

    def history(self) -> list[dict[str, float]]:
        """Return the lines of metrics.jsonl."""
        return list(logged(self.metrics))

    def page(self, vae: VAE, data: Resident, result: Evaluation, heading: page.Heading) -> None:
        """Write report.html: the finished run at a glance."""
        with evaluation_mode(vae):
            sections = page.drawn(vae, data, result, self.spec, self.history())
        page.write(self.folder, heading, self.warnings, sections)

    def finish(self, summary: dict[str, Any], settings: dict[str, Any], step: int, note: str) -> None:
        """Training is over: the numbers of the test set, the HParams tab, the table.

        The numbers stand one step behind the last, where they are void if the run goes on or was killed just here.
        """
        self.terminal.end()
        tested = {
            key: value for key, value in summary.items() if key.startswith("test/") and not key.endswith(CONSTANT)
        }
        self._on_board(lambda board: board.scalars(step + 1, tested))
        self._on_board(lambda board: board.settings(as_chosen(settings), tested or ["valid/elbo"]))
        self.attempt("the table", lambda: self.terminal.table(summary, note))

    def conclude(self, summary: dict[str, Any]) -> None:
        """Write summary.json, the last of all: where it is, the run is finished and everything else was written."""
        content = json.dumps(plain(summary) | {"warnings": self.warnings}, indent=2) + "\n"
        write(self.folder / "summary.json", content)  # whole: other jobs of a sweep may be reading

    def close(self) -> None:
        """Write what is left and close the files."""
        self.terminal.end()
        self._close()

    def _close(self) -> None:
        self._on_board(lambda board: board.close())
        with written(self.metrics):
            self.lines.close()

    def _on_board(self, write: Callable[[Board], None]) -> None:
        if (board := self.board) is not None:
            self.attempt("tensorboard", lambda: write(board))

    def _show(self, tag: str, image: Tensor, step: int) -> None:
        self._on_board(lambda board: board.picture(tag, image, step))

    def _write(self, step: int, epoch: float, scalars: dict[str, float]) -> None:
        self._on_board(lambda board: board.scalars(step, scalars))
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}  # JSON knows no others
        with written(self.metrics):
            self.lines.write(json.dumps({"step": step, "epoch": round(epoch, 4), **finite}) + "\n")


def _truncate(metrics: Path, step: int) -> None:
    """Drop the lines after a step: the resumed run writes them again."""
    kept = [json.dumps(line) + "\n" for line in logged(metrics) if line["step"] <= step]
    text = "".join(kept)
    if text != metrics.read_text(errors="replace"):
        write(metrics, text)


def logged(metrics: Path) -> Iterator[dict[str, float]]:
    """Yield the lines of metrics.jsonl; incomplete lines, and lines without numbers at a step, are skipped."""
    for text in metrics.read_text(errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            line = json.loads(text)
            known = isinstance(line, dict) and {"step", "epoch"} <= set(line)
            if known and None not in map(number, line.values()):
                yield line


def plain(numbers: dict[str, Any]) -> dict[str, Any]:
    """Return numbers as strict JSON has them: null where there is none."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
