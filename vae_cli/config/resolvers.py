"""What options may refer to as ${name:…}: registered on import."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, Node, OmegaConf

from vae_cli.config.words import CONF, OWN_CONF, groups
from vae_cli.system.errors import UserError


def fraction(share: float, *, _root_: DictConfig, _node_: Node) -> float:
    """Return that share of the run's epochs: `${fraction:0.05}` in an option, so that schedules scale with the run.

    Raises:
        UserError: the run's length is not given in epochs.
    """
    if _root_.trainer.steps is not None:
        raise UserError(f"{_node_._get_full_key(None)}: required beside trainer.steps; it is a share of trainer.epochs")
    epochs = _root_.trainer.epochs
    return share * epochs if isinstance(epochs, (int, float)) else share  # a faulty one is told of later


def option_groups() -> str:
    """Return what --help says of the groups of options of the command; nothing where it has none."""
    folders = [Path(CONF), *OWN_CONF]
    found = {group: {path.stem for each in folders for path in (each / group).glob("*.yaml")} for group in groups()}
    lines = [f"{group}: {', '.join(sorted(options))}" for group, options in found.items()]
    return "\n".join(["", "== Groups of options: choose by GROUP=OPTION ==", "", *lines, ""]) if lines else ""


OmegaConf.register_new_resolver("fraction", fraction, replace=True)
OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)
