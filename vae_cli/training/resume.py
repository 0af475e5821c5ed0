"""The states that a run goes on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_cli.config import modernise_state
from vae_cli.config.run import Config
from vae_cli.data import Dataset
from vae_cli.finished import about_data, changed, refuse_others
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError

State = dict[str, Any]


def load_states(
    folder: Path, config: Config, dataset: Dataset, tell: Callable[[str], None]
) -> tuple[State, State | None]:
    """Return the last and the best state of a run, whose data must be those that were loaded now.

    Args:
        folder: of the run.
        config: its settings.
        dataset: its data, as they are now.
        tell: is told of a checkpoint that is damaged, where another takes its place.

    Raises:
        UserError: there is no state, or it is of other settings or other data.
    """
    path = folder / "checkpoints" / checkpoint.LAST
    with checkpoint.fitting(path):
        last = checkpoint.load_last(path.parent, "cpu", tell)
        checkpoint.count_in(last, "step")
        if change := changed(about_data(last), dataset):
            raise UserError(f"resume={folder}: the data changed since the run began ({change})")
        refuse_others(path, last, config)
        last = modernise_state(last)
    return last, _best_state(path.with_name(checkpoint.BEST), config, tell)


def _best_state(path: Path, config: Config, tell: Callable[[str], None]) -> State | None:
    """Return the best state of a run; None where there is none yet, or none that is whole."""
    try:
        best = checkpoint.load(path) if path.is_file() else None
    except UserError as error:
        tell(f"{error}; the best weights are sought anew from here on")
        return None
    if best is not None:
        with checkpoint.fitting(path):
            refuse_others(path, best, config)
            return modernise_state(best)
    return None
