"""The settings of earlier runs: read, brought up to date, compared. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vae_cli.config.commands import PATHS
from vae_cli.config.earlier import modernise
from vae_cli.config.options import targets
from vae_cli.system.disk import SETTINGS, TYPED, refuse_links
from vae_cli.system.errors import UserError, first_line

MAY_CHANGE = ("trainer.", "optimizer.lr", "score")  # settings that a resumed run may be given anew, beside these
MUST_STAY = ("trainer.batch_size", "trainer.ema")  # but for these
MOVES = tuple(f"data.{key}" for key in PATHS)  # data are known by what they are, not by where


def stored(folder: Path) -> dict[str, Any]:
    """Return the settings that a run was accepted with; names of an earlier version become those of today.

    Raises:
        UserError: they cannot be read, or are no settings.
    """
    path = folder / SETTINGS
    refuse_links(folder)
    try:
        found = plain_yaml(path)
    except Exception as error:  # damaged text fails in as many ways as it has types
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(found, dict) or not isinstance(found.get("data"), dict):
        raise UserError(f"{path}: holds no settings of a run")
    return modernise(found)


def require_run(folder: Path) -> None:
    """Refuse a folder that holds no run.

    Raises:
        UserError: it does not; where it is a sweep, this names the folders of its jobs.
    """
    if not (folder / SETTINGS).is_file():
        jobs = sorted(str(each.parents[1]) for each in folder.glob(f"*/{SETTINGS}"))
        hint = f"; it is a sweep, choose one of its jobs: {', '.join(jobs[:9])}" if jobs else ""
        raise UserError(f"run={folder}: no run there ({Path(SETTINGS).name} is missing){hint}")


def typed(folder: Path) -> list[str]:
    """Return the overrides that a run was begun with, as they were typed; none where what stands there are none."""
    try:
        found = plain_yaml(folder / TYPED)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return []
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def plain_yaml(path: Path) -> Any:
    """Return what a YAML file holds: plain values only, without tags and aliases.

    Raises:
        OSError, ValueError, yaml.YAMLError: it cannot be read, or holds tags or aliases; these can inflate it.
    """
    text = path.read_text()
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("holds an alias (*NAME)")
    return yaml.safe_load(text)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'kl': {'weight': 1.0}} → {'kl.weight': 1.0}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def as_chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Name options as one chooses them: {'model._target_': 'vae_cli.model.conv.Conv', …} → {'model': 'conv', …}."""
    found = {}
    for key, value in settings.items():
        group, _, name = key.partition(".")
        found[group if name == "_target_" else key] = targets(group).get(value, value) if name == "_target_" else value
    return found


def stays(key: str) -> bool:
    """Whether a resumed run keeps a setting."""
    return key in MUST_STAY or not (key.startswith(MAY_CHANGE) or key in MOVES)


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two runs, each with both of its values."""
    a, b = flat(modernise(one)), flat(modernise(other))
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key) and key != "resume"}
