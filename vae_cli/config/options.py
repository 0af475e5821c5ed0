"""The options of each group: conf/GROUP/OPTION.yaml and the class or function that it names. No torch here."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from vae_cli.config.words import CONF

GROUPS = (
    "data", "model", "latent", "likelihood", "prior", "posterior", "objective", "kl", "conditional", "optimizer",
    "lr_schedule",
)  # fmt: skip
# What `parts` offers to the constructors of each group in addition to its settings.
OFFERED: dict[str, tuple[str, ...]] = {
    "data": (),
    "model": ("shape", "shown", "latent_shape", "condition_dim", "outputs"),
    "latent": ("model", "latent_dim", "posterior", "prior"),
    "likelihood": ("shape", "levels", "condition_dim", "center", "spread"),
    "prior": ("latent_dim", "classes", "condition_dim", "encoder", "shape", "low", "high"),
    "posterior": ("head", "latent_dim", "classes"),
    "objective": ("latent_dim", "examples"),
    "kl": (),
    "conditional": ("classes", "attributes"),
    "optimizer": ("params", "fused"),
    "lr_schedule": ("epochs",),
    "task": ("model", "folder", "seed", "examples"),
}
# Arguments of tasks that a function makes from settings of its own.
MADE = {"task": {"examples": "vae_cli.commands.generate.sources.examples_of"}}
# Settings that every option of a group has in addition to its own: those of this signature.
SHARED = {"data": "vae_cli.data.dataset.load", "model": "vae_cli.model.base.settings"}
NOT_SETTINGS = ("source", "support", "option")  # what else `load` is given


@cache
def targets(group: str) -> dict[str, str]:
    """Return the target of each of our options of a group, and the (first) name of the option."""
    found: dict[str, str] = {}
    for path in sorted((Path(CONF) / group).glob("*.yaml")):
        if match := re.search(r"^_target_: *(\S+)", path.read_text(), re.MULTILINE):
            found.setdefault(match[1], path.stem)
    return found


def option_of(group: str, target: str) -> str:
    """Return GROUP=OPTION of a target, or its setting where it is no option of ours."""
    option = targets(group).get(target)
    return f"{group}={option}" if option else f"{group}._target_={target}"


def modern(group: str, target: str) -> str:
    """Return today's target for that of an earlier version: classes kept their names when modules moved."""
    if target in targets(group) or not target.startswith("vae_cli."):
        return target
    name = target.rpartition(".")[2]
    return next((each for each in targets(group) if each.rpartition(".")[2] == name), target)
