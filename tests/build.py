"""Parts as tests want them: the settings of conf/GROUP/OPTION.yaml, some of them changed, and facts of the data."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from vae_cli import parts
from vae_cli.batch import Batch
from vae_cli.config import check_part, compose
from vae_cli.config.options import OFFERED
from vae_cli.config.words import CONF
from vae_cli.data import Spec
from vae_cli.objective import Penalty, Terms
from vae_cli.vae import VAE

FACTS: dict[str, Any] = {  # offered where a test says nothing of them
    **{"shape": (6,), "levels": 2, "low": 0.0, "high": 1.0, "center": None, "spread": None},
    **{"classes": None, "attributes": None, "condition_dim": 0, "latent_dim": 3, "outputs": 1},
    **{"examples": 100, "epochs": 10.0, "fused": False},
}


@cache
def settings(group: str, option: str) -> dict[str, Any]:
    """Return what an option sets: its own settings and those that its group shares."""
    shared = _content("train").get(group)
    own = _content(f"{group}/{option}")
    return {**(shared if isinstance(shared, dict) else {}), **own}


def _content(name: str) -> dict[str, Any]:
    found = yaml.safe_load(Path(CONF, f"{name}.yaml").read_text())
    return {key: _number(value) for key, value in found.items() if key != "defaults"}


def _number(value: Any) -> Any:
    """Return a number for what YAML 1.1 takes for a text: 1e-3."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def part(group: str, option: str, **given: Any) -> Any:
    """Build an option of a group: its settings, changed by those given, and the facts that its constructor names."""
    told = {*OFFERED[group], "latent_dim"}
    facts = {**FACTS, **{key: value for key, value in given.items() if key in told}}
    facts = {"shown": facts["shape"], "latent_shape": (facts["latent_dim"],), **facts}
    changed = {key: value for key, value in given.items() if key not in told}
    changed = {key: list(value) if isinstance(value, tuple) else value for key, value in changed.items()}
    checked = check_part(group, {group: {**settings(group, option), **changed}})
    return parts.assemble(group, checked, **{key: facts[key] for key in OFFERED[group] if key in facts})


composed = cache(compose)


def vae(*overrides: str, **facts: Any) -> VAE:
    """Build the whole model of a configuration, with fresh weights, for data [6] of 0 and 1 or of other facts."""
    spec = Spec(**{"shape": (6,), "levels": 2, "low": 0.0, "high": 1.0, **facts})
    return parts.build(composed(*overrides), spec)


def terms(objective: Any, model: VAE, x: Any, y: Any = None, **penalty: Any) -> Terms:
    """Return the terms of one batch of an objective; the KL costs what is given (weight, free_bits, target)."""
    return objective(model, Batch(x, y), Penalty(**penalty))
