"""What a notebook does without a shell: train, and look at the numbers of runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from vae_cli.api import Trained, load
from vae_cli.system.errors import UserError

HERE_ALONE = {  # what vae-train takes and a call does not, and what is allowed instead
    "hydra": "folder=FOLDER is allowed",
    "resume": "`vae-train resume=FOLDER` goes on with a run",
    "sweep": "one run is trained; `vae-train -m` sweeps",
    "-": "settings as KEY=VALUE are allowed",
}


def train(*overrides: str, folder: str | os.PathLike[str] | None = None, device: str = "auto") -> Trained:
    """Train what `vae-train OVERRIDES` would, and return the finished run as `vae_cli.load` does.

    Args:
        overrides: options and settings: "model=conv", "kl.weight=4".
        folder: of the run; by default outputs/DATE/TIME.
        device: where the returned model is; `trainer.device=…` says where it is trained.

    Raises:
        vae_cli.system.errors.UserError: a setting is wrong, or the folder holds a run already.

    `vae_cli.train("data=digits", "trainer.steps=100").sample(16)` gives pictures.
    """
    settings = _settings(overrides)
    from vae_cli.commands.folders import claim, withdraw
    from vae_cli.config import validate
    from vae_cli.training import run

    config = validate(settings)
    if config.trainer.prune:
        raise UserError("trainer.prune: has no effect on a single run, which has no siblings; null is allowed")
    place = claim(_new(folder), chosen=False)
    try:
        run.train(config, place, accepted=lambda: _record(place, settings, overrides))
    except Exception:
        withdraw(place)
        raise
    return load(place, device=device, trust=True)


def history(run: str | os.PathLike[str] | Trained) -> Any:
    """Return what a run logged as a pandas DataFrame, a row for each line of its metrics.jsonl.

    Columns are step, epoch, train/elbo, valid/elbo, …; where a line has no such number it is NaN.

    Raises:
        vae_cli.system.errors.UserError: pandas is not installed, or there is no run.
    """
    pandas = _pandas("history")
    from vae_cli.config import require_run
    from vae_cli.report.reporter import logged

    folder = Path(run.folder if isinstance(run, Trained) else run)
    require_run(folder)
    return pandas.DataFrame(list(logged(folder / "metrics.jsonl")))


def runs(folder: str | os.PathLike[str] = "outputs") -> Any:
    """Return the finished runs anywhere in a folder as a pandas DataFrame, a row each.

    Columns are the run's folder, its settings (model, kl.weight, …) and the numbers of its summary (test/elbo, …).

    Raises:
        vae_cli.system.errors.UserError: pandas is not installed, or there are no finished runs.
    """
    pandas = _pandas("runs")
    from vae_cli.commands.compare import find
    from vae_cli.config import as_chosen

    found = [run for path in sorted(Path(folder).rglob("summary.json")) for run in find(path.parent)]
    if not found:
        raise UserError(f"folder={folder}: no finished run in it (no summary.json)")
    rows = ({"run": str(run.folder), **as_chosen(run.settings), **run.numbers} for run in found)
    return pandas.DataFrame(list(rows))


def _pandas(name: str) -> Any:
    try:
        return import_module("pandas")
    except ImportError:
        raise UserError(f"vae_cli.{name}: needs pandas; pip install pandas brings it") from None


def _settings(overrides: Sequence[str]) -> dict[str, Any]:
    """Compose the settings that `vae-train OVERRIDES` would run with.

    Raises:
        UserError: one of them is wrong, or is for the command alone.
    """
    from hydra import compose, initialize_config_dir

    from vae_cli.commands.settings import plain_settings as resolved
    from vae_cli.commands.shared import expected, refuse_misused
    from vae_cli.config.words import CONF

    for override in overrides:
        for key, allowed in HERE_ALONE.items():
            if override.lstrip("+~").startswith(key):
                raise UserError(f"{override}: has no effect here; {allowed}")
    refuse_misused(list(overrides))
    try:
        with initialize_config_dir(CONF, version_base="1.3"):
            return resolved(compose("train", list(overrides)))
    except Exception as error:
        if isinstance(error, UserError) or (line := expected(error)) is None:
            raise
        raise UserError(line) from None


def _new(folder: str | os.PathLike[str] | None) -> Path:
    """Return the folder of a new run.

    Raises:
        UserError: it holds one already.
    """
    if folder is None:
        return Path("outputs") / datetime.now().strftime("%Y-%m-%d/%H-%M-%S")
    if (Path(folder) / ".hydra").exists():
        raise UserError(f"folder={folder}: holds a run already; vae_cli.load returns it, another folder is allowed")
    return Path(folder)


def _record(folder: Path, settings: dict[str, Any], overrides: Sequence[str]) -> None:
    """Write the settings of a run, and what was typed to get them."""
    from omegaconf import OmegaConf

    from vae_cli.system.disk import SETTINGS, TYPED, write

    for path, content in ((SETTINGS, settings), (TYPED, list(overrides))):
        write(folder / path, OmegaConf.to_yaml(OmegaConf.create(content)))
