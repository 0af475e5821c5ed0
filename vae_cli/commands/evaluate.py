"""vae-eval: a finished run in, honest numbers out.

torch is imported only once the settings have been accepted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_cli.commands.shared import exit_on_error, import_torch, own_folders, run_hydra
from vae_cli.config import words
from vae_cli.config.words import CONF
from vae_cli.system.disk import Unwritable, not_written, read_object, write
from vae_cli.system.errors import DEBUGGING, UserError, first_line

if TYPE_CHECKING:
    from vae_cli.config.commands import Evaluate
    from vae_cli.data import Dataset, Resident
    from vae_cli.report.console import Terminal


class NotApplicable(Exception):
    """A metric means nothing for this run."""


def main() -> None:
    """Run vae-eval; print errors as one line and exit with 1."""
    words.use("evaluate")
    run_hydra("vae-eval", application)


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def application(composed: DictConfig) -> None:
    """Evaluate what the settings say."""
    from vae_cli.config import require_run, validate_evaluate

    with exit_on_error("vae-eval"):
        settings = validate_evaluate(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
        require_run(Path(settings.run))  # before torch is imported
        own_folders()
        import_torch()
        evaluate(settings)


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Evaluate a run, print the table, write evaluation.json and the figures, and return the numbers.

    Raises:
        UserError: something the person can mend.
    """
    from vae_cli.system.device import choose_device
    from vae_cli.system.machine import prepare_compiler, set_up

    if "fid" in settings.metrics:
        _require_fid()
    if settings.compile:
        prepare_compiler()
    set_up()
    session = Session(settings, Path(settings.run), choose_device(settings.device, "device"))
    found, failed = _compute(session)
    summary = session.metrics.named(found)
    session.terminal.numbers_of(summary, settings.split, f"{settings.run}: {session.measure}")
    if failed:
        raise UserError(f"metrics={failed}: failed (see above); the others are in {settings.run}/evaluation.json")
    return summary


def _compute(session: Session) -> tuple[dict[str, Any], list[str]]:
    """Return the numbers of the metrics, written after each of them, and the names of those that failed."""
    found: dict[str, Any] = {}
    failed: list[str] = []
    for name in session.settings.metrics:
        try:
            found |= METRICS[name](session)
        except NotApplicable as reason:
            session.terminal.line(f"{name}: {reason}")
        except UserError:
            raise
        except Exception as error:  # the numbers of the other metrics are not lost with one
            _memory(error, session.settings, session.terminal, name)
            failed.append(name)
        _write(session, found)
    return found, failed


class Session:
    """A run made ready for evaluation: model, data, and what metrics share."""

    def __init__(self, settings: Evaluate, folder: Path, device: Any):
        from vae_cli import finished, metrics
        from vae_cli.report.console import Terminal

        run = finished.restore(folder, device, trust=settings.trust, data=settings.data.places)
        self.settings, self.folder, self.step = settings, folder, run.step
        self.config, self.vae, self.spec = run.config, run.vae, run.spec
        self.dataset: Dataset = finished.data_of(run, folder)
        whole = self.train if settings.split == "train" else self._split(settings.split)
        self.data = whole.part(settings.examples or len(whole), settings.seed)
        self.terminal = Terminal(folder / "evaluation.log", fresh=True)
        self.measure = metrics.measure(self.dataset, self.vae.likelihood, conditional=self.vae.conditional)
        self.notes = metrics.caveats(self.dataset, self.vae.likelihood)
        for note in self.notes:
            self.warn(note)
        self.metrics = metrics.SplitMetrics(
            self.vae,
            self.spec,
            settings.split,
            self.data,
            draws=self.config.trainer.final_samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
        )

    def warn(self, text: str) -> None:
        """Say something that the person should look into."""
        self.terminal.line(f"warning: {text}", style="yellow")

    @cached_property
    def train(self) -> Resident:
        """The training examples, every random draw made once."""
        return self._split("train")

    def _split(self, split: str) -> Resident:
        from vae_cli.finished import split_of

        return split_of(self.dataset, split, next(self.vae.parameters()).device, self.config.data.seed)

    def labels(self, split: Resident) -> Any:
        """The labels of a split.

        Raises:
            NotApplicable: there are none.
        """
        if split.examples.y is None:
            raise NotApplicable("not computed, the data have no labels")
        return split.examples.y

    def draw(self, name: str, write: Callable[[Path], None]) -> None:
        """Draw a figure of the split; where that fails, say so and go on: it costs no numbers."""
        path = self.folder / "figures" / f"{name}_{self.settings.split}.png"
        try:
            path.parent.mkdir(exist_ok=True)
            write(path)
        except Exception as error:
            if DEBUGGING and not isinstance(error, (OSError, Unwritable)):
                raise
            self.warn(not_written(f"figures/{path.name}", error))


def _elbo(session: Session) -> dict[str, Any]:
    from vae_cli.report import figures, kl_map

    result = session.metrics.evaluation
    if worse := session.metrics.worse_than_no_model():
        session.warn(worse)
    session.draw("kl_by_dimension", lambda path: figures.kl_by_dimension(result.kl_by_dimension, result.units, path))
    if (grid := kl_map.grid(result.kl_by_dimension, session.vae.latent.layout.shape)) is not None:
        session.draw("kl_map", lambda path: kl_map.write(grid, path))
    more = {"elbo_stderr": result.elbo_stderr, "rate": result.kl, "distortion": -result.reconstruction}
    return session.metrics.elbo() | more


def _log_likelihood(session: Session) -> dict[str, Any]:
    from vae_cli.report import figures

    settings = session.settings
    with session.terminal.bar("log p(x)", len(session.data)) as advance:
        estimate, found = session.metrics.log_likelihood(settings.samples, compiled=settings.compile, advance=advance)
    session.draw("log_likelihood", lambda path: figures.log_likelihood(estimate, path))
    more = {"bound_by_samples": estimate.curve, "posterior_gap_stderr": estimate.gap_stderr}
    return found | session.metrics.bits_of(estimate) | more


def _aggregate(session: Session) -> dict[str, Any]:
    return session.metrics.aggregate()


def _amortisation(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    some = session.data.part(session.settings.amortisation_examples)
    samples = min(session.settings.samples, 1000)
    return metrics.amortisation(session.vae, some, samples=samples, seed=session.settings.seed)


def _probe(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    train, test = session.train.part(5000), session.data
    pairs = [(metrics.codes(session.vae, split), session.labels(split)) for split in (train, test)]
    if len(pairs[0][1].unique(dim=0)) < 2 or len(test) < 2:
        raise NotApplicable("not computed, there is one label alone")
    return metrics.linear_probe(*pairs)


def _disentanglement(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    if session.labels(session.data).ndim == 1:
        raise NotApplicable("not computed, classes are one factor; MIG and DCI need labels y [N, factors]")
    train, test = session.train.part(5000), session.data.part(5000)
    reference = session.labels(train)
    pairs = [
        (metrics.codes(session.vae, split), metrics.factors(session.labels(split), reference))
        for split in (train, test)
    ]
    if pairs[0][1].shape[1] == 0:
        raise NotApplicable("not computed, no factor varies")
    return {"mig": metrics.mutual_information_gap(*pairs[1]), **metrics.dci(*pairs)}


def _quality(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    if session.labels(session.data).ndim != 1 or (session.spec.classes or 0) < 2:
        raise NotApplicable("not computed, its classifier needs classes")
    if session.spec.missing:
        raise NotApplicable("not computed, its classifier sees whole examples")
    if min(len(session.train), 2 * len(session.data)) < 20:
        raise NotApplicable("not computed, there are too few examples")
    classes, seed = session.spec.classes or 0, session.settings.seed
    return metrics.quality(session.vae, session.train, session.data, classes, seed=seed)


def _fid(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    if len(session.spec.shape) not in (2, 3) or not session.spec.unit or session.spec.missing:
        raise NotApplicable("not computed, Inception sees whole pictures alone")
    try:
        return metrics.inception_fid(session.vae, session.data, seed=session.settings.seed)
    except OSError as error:
        raise UserError(f"metrics=[fid]: the Inception weights cannot be had ({first_line(error)})") from error


def _require_fid() -> None:
    try:
        import torch_fidelity  # noqa: F401
    except ImportError as error:
        raise UserError("metrics=[fid]: needs torch-fidelity; pip install 'vae-cli[fid]'") from error


METRICS: dict[str, Callable[[Session], dict[str, Any]]] = {
    "elbo": _elbo,
    "log_likelihood": _log_likelihood,
    "aggregate": _aggregate,
    "amortisation": _amortisation,
    "probe": _probe,
    "disentanglement": _disentanglement,
    "quality": _quality,
    "fid": _fid,
}


def _memory(error: Exception, settings: Evaluate, terminal: Terminal, name: str) -> None:
    """Say in one line why a metric failed.

    Raises:
        UserError: memory ran out, and the line says what to lower.
    """
    from vae_cli.system.machine import is_out_of_memory

    if is_out_of_memory(error):
        now = settings.batch_size or "chosen by a memory bound"
        raise UserError(f"out of memory: lower batch_size (now {now}), or take device=cpu") from error
    if DEBUGGING:
        raise error
    terminal.line(f"{name}: failed ({type(error).__name__}: {first_line(error)})", style="red")


def _write(session: Session, found: dict[str, Any]) -> None:
    """Write the numbers so far, beside those of other splits.

    Earlier ones of this split stay where they are of the same weights, examples and seed.
    """
    from vae_cli.report.reporter import plain

    split, path = session.settings.split, session.folder / "evaluation.json"
    stamp = {"step": session.step, "examples": len(session.data), "seed": session.settings.seed}
    about = stamp | {"measure": session.measure, "notes": session.notes}
    try:
        before = read_object(path)
    except UserError:  # none yet, or none that can be read
        before = {}
    if any(before.get(f"{split}/{key}") != value for key, value in stamp.items()):
        before = {key: value for key, value in before.items() if not key.startswith(f"{split}/")}
    now = {f"{split}/{key}": value for key, value in (plain(found) | about).items()}
    write(path, json.dumps(before | now, indent=2) + "\n", mark=f".{os.getpid()}")


if __name__ == "__main__":
    main()
