"""vae-eval: a finished run in, honest numbers out.

torch is imported only once the settings have been accepted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_cli import errors
from vae_cli.command import DEBUGGING, ERRORS, guarded, own_folders
from vae_cli.errors import CONF, UserError, first_line, one_line

if TYPE_CHECKING:
    from vae_cli.data import Dataset, Resident, Spec
    from vae_cli.report.console import Terminal
    from vae_cli.schema import Evaluate
    from vae_cli.vae import VAE


class NotApplicable(Exception):
    """A metric means nothing for this run."""


def main() -> None:
    """Run vae-eval; print errors as one line and exit with 1."""
    errors.use("evaluate")
    guarded("vae-eval", lambda: application())


@hydra.main(version_base="1.3", config_path=CONF, config_name="evaluate")
def application(composed: DictConfig) -> None:
    """Evaluate what the settings say."""
    from vae_cli.config import validate_evaluate

    try:
        settings = validate_evaluate(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
        own_folders()
        evaluate(settings)
    except ERRORS as error:  # Hydra would put a line of its own before ours
        if DEBUGGING:
            raise
        sys.exit(f"vae-eval: error: {one_line(error)}")


def evaluate(settings: Evaluate) -> dict[str, Any]:
    """Evaluate a run, print the table, write evaluation.json and the figures, and return the numbers.

    Raises:
        UserError: something the person can mend.
    """
    from vae_cli.report.console import Terminal
    from vae_cli.trainer import choose_device

    folder, device = Path(settings.run), choose_device(settings.device)
    session = Session(settings, folder, device, Terminal(folder / "evaluation.log", fresh=True))
    found: dict[str, Any] = {}
    for name in settings.metrics:
        try:
            found |= METRICS[name](session)
        except NotApplicable as reason:
            session.terminal.line(f"{name}: {reason}")
        except (MemoryError, RuntimeError) as error:
            raise _memory(error, settings, device.type) from error
    summary = {f"{settings.split}/{key}": value for key, value in found.items()}
    about = {"measure": session.measure, "notes": session.notes, "examples": len(session.data), "seed": settings.seed}
    _write(folder / "evaluation.json", summary | {f"{settings.split}/{key}": value for key, value in about.items()})
    session.terminal.numbers_of(summary, settings.split, f"{folder}: {session.measure}")
    return summary


class Session:
    """A run made ready for evaluation: model, data, and what metrics share."""

    def __init__(self, settings: Evaluate, folder: Path, device: Any, terminal: Terminal):
        from vae_cli import metrics, parts

        self.settings, self.folder, self.terminal = settings, folder, terminal
        self.config, self.vae, _ = parts.restore(folder, device, trust=settings.trust)
        self.dataset: Dataset = parts.load_dataset(self.config)
        self.train = self._split("train")
        whole = self.train if settings.split == "train" else self._split(settings.split)
        self.data = whole.part(settings.examples or len(whole))
        self.spec: Spec = self.dataset.spec
        self.measure = metrics.measure(self.dataset, self.vae.likelihood)
        self.notes = metrics.caveats(self.dataset, self.vae.likelihood)
        for note in self.notes:
            terminal.line(f"warning: {note}", style="yellow")
        self.whole: Any = None

    vae: VAE

    def _split(self, split: str) -> Resident:
        from vae_cli.parts import split_of

        return split_of(self.dataset, split, next(self.vae.parameters()).device, self.config.data.seed)

    def evaluation(self) -> Any:
        """The ELBO of the examples, computed once."""
        from vae_cli import metrics

        if self.whole is None:
            draws = self.config.trainer.final_samples
            self.whole = metrics.evaluate(
                self.vae, self.data, samples=draws, seed=self.settings.seed, batch_size=self.settings.batch_size
            )
        return self.whole

    def labels(self, split: Resident) -> Any:
        """The labels of a split.

        Raises:
            NotApplicable: there are none.
        """
        if split.examples.y is None:
            raise NotApplicable("not computed, the data have no labels")
        return split.examples.y


def _elbo(session: Session) -> dict[str, Any]:
    from vae_cli import metrics
    from vae_cli.report import figures

    result = session.evaluation()
    folder = session.folder / "figures"
    folder.mkdir(exist_ok=True)
    figures.kl_by_dimension(result.kl_by_dimension, folder / f"kl_by_dimension_{session.settings.split}.png")
    found = {key.partition("/")[2]: value for key, value in result.scalars("").items()}
    found |= {"elbo_stderr": result.elbo_stderr, "rate": result.kl, "distortion": -result.reconstruction}
    bits = metrics.bits_per_dim(result.elbo, session.spec, session.vae.likelihood)
    return found | ({} if bits is None else {"bits_per_dim": bits})


def _log_likelihood(session: Session) -> dict[str, Any]:
    from vae_cli import metrics
    from vae_cli.report import figures

    settings = session.settings
    with session.terminal.bar("log p(x)", len(session.data)) as advance:
        estimate = metrics.log_likelihood(
            session.vae,
            session.data,
            samples=settings.samples,
            seed=settings.seed,
            batch_size=settings.batch_size,
            advance=advance,
        )
    (session.folder / "figures").mkdir(exist_ok=True)
    figures.log_likelihood(estimate, session.folder / "figures" / f"log_likelihood_{settings.split}.png")
    found: dict[str, Any] = metrics.numbers(estimate, session.evaluation(), len(session.data))
    bits = metrics.bits_per_dim(estimate.mean, session.spec, session.vae.likelihood)
    found |= {} if bits is None else {"log_likelihood_bits_per_dim": bits}
    return found | {"bound_by_samples": estimate.curve, "posterior_gap_stderr": estimate.gap_stderr}


def _aggregate(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    return metrics.aggregate(session.vae, session.data, seed=session.settings.seed)


def _amortisation(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    some = session.data.part(session.settings.amortisation_examples)
    samples = min(session.settings.samples, 1000)
    return metrics.amortisation(session.vae, some, samples=samples, seed=session.settings.seed)


def _probe(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    train, test = session.train.part(5000), session.data
    pairs = [(metrics.codes(session.vae, split), session.labels(split)) for split in (train, test)]
    return metrics.linear_probe(*pairs)


def _disentanglement(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    if session.labels(session.data).ndim == 1:
        raise NotApplicable("not computed, classes are one factor; MIG and DCI need labels y [N, factors]")
    train, test = session.train.part(5000), session.data.part(5000)
    pairs = [(metrics.codes(session.vae, split), metrics.factors(session.labels(split))) for split in (train, test)]
    return {"mig": metrics.mutual_information_gap(*pairs[1]), **metrics.dci(*pairs)}


def _quality(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    if session.labels(session.data).ndim != 1 or (session.spec.classes or 0) < 2:
        raise NotApplicable("not computed, its classifier needs classes")
    return metrics.quality(
        session.vae, session.train, session.data, session.spec.classes or 0, seed=session.settings.seed
    )


def _fid(session: Session) -> dict[str, Any]:
    from vae_cli import metrics

    if len(session.spec.shape) not in (2, 3) or not session.spec.unit:
        raise NotApplicable("not computed, Inception sees pictures alone")
    try:
        return metrics.inception_fid(session.vae, session.data, seed=session.settings.seed)
    except ImportError as error:
        raise UserError("metrics=[fid]: needs torch-fidelity; pip install 'vae-cli[fid]'") from error
    except OSError as error:
        raise UserError(f"metrics=[fid]: the Inception weights cannot be had ({first_line(error)})") from error


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


def _memory(error: BaseException, settings: Evaluate, device: str) -> BaseException:
    """Return an error that says what to lower where memory ran out, else the error itself."""
    text = str(error).lower()
    if isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text:
        now = settings.batch_size or "chosen by a memory bound"
        return UserError(f"out of memory on {device}: lower batch_size (now {now}), or take device=cpu")
    return error


def _write(path: Path, summary: dict[str, Any]) -> None:
    """Write the numbers beside those of other splits that are there already."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(before | summary, indent=2) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    main()
