"""vae-generate: the command. torch is imported only once the settings have been accepted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from vae_cli.commands.shared import exit_on_error, import_torch, new_folder, own_folders, run_hydra
from vae_cli.config import check_part, require_run, words
from vae_cli.config.check import check
from vae_cli.config.commands import Generate
from vae_cli.config.options import targets
from vae_cli.config.words import CONF
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.output import say

if TYPE_CHECKING:
    from vae_cli.api import Trained

NUMBERS = {
    "sample": ("n",),
    "reconstruct": ("n",),
    "interpolate": ("steps",),
    "traverse": ("dimensions", "steps"),
    "manifold": ("n",),
    "transfer": ("n",),
    "impute": ("n", "samples"),
    "anomaly": ("samples",),
}  # settings that a task's memory grows with


def main() -> None:
    """Run vae-generate; print errors as one line and exit with 1."""
    words.use("generate")
    run_hydra("vae-generate", application)


@hydra.main(version_base="1.3", config_path=CONF, config_name="generate")
def application(composed: DictConfig) -> None:
    """Do what the settings say, and print the paths of what was written."""
    with exit_on_error("vae-generate"):
        settings = validate(OmegaConf.to_container(composed, resolve=True, throw_on_missing=True))
        require_run(Path(settings.run))  # before torch is imported
        own_folders()
        import_torch()
        for path in generate(settings):
            say(os.path.relpath(path))


def validate(raw: Any) -> Generate:
    """Check the settings and return them typed.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type or out of range.
    """
    if not isinstance(raw.get("task"), Mapping):
        raise UserError("task: one option of conf/task is required")
    if (target := raw["task"].get("_target_")) not in targets("task"):
        raise UserError(f"task._target_={target}: no such task ({', '.join(targets('task').values())} are allowed)")
    return check(Generate, {**raw, "task": check_part("task", raw)}, "")


def generate(settings: Generate) -> list[Path]:
    """Run a task and return the paths of what it wrote.

    Raises:
        UserError: something the person can mend.
    """
    import torch

    from vae_cli.api import load
    from vae_cli.commands.generate import tasks
    from vae_cli.system.machine import explain_out_of_memory, set_up

    set_up()
    name = targets("task")[settings.task.target]
    with explain_out_of_memory(f"task={name}", _remedy(settings)):
        model = load(settings.run, device=settings.device, trust=settings.trust, data=settings.data.places)
        torch.manual_seed(settings.seed)
        arguments = _arguments(settings, model)
        if arguments.get("means") and model.vae.likelihood.display == "draw":
            say("task.means=true: p(x|z) of this run has no mean in closed form; draws are shown")
        with new_folder(Path(settings.run) / "generated" / name, settings.output) as folder:
            try:
                return getattr(tasks, name)(model, folder, **arguments)
            except ValueError as error:
                raise UserError(f"task={name}: {first_line(error)}") from error


def _remedy(settings: Generate) -> str:
    """Say what takes less memory: smaller numbers of the task, where its memory grows with them, and another device."""
    names = NUMBERS.get(targets("task")[settings.task.target], ())
    lower = f"lower {' or '.join(f'task.{name}' for name in names)}" if names else "give fewer examples at once"
    return lower if settings.device == "cpu" else f"{lower}, or take device=cpu"


def _arguments(settings: Generate, model: Trained) -> dict[str, Any]:
    """Return a task's settings, with examples in place of where they come from."""
    from vae_cli.commands.generate.sources import examples_of

    arguments = settings.task.settings
    if "source" in arguments:
        arguments["examples"] = examples = examples_of(model, arguments.pop("split"), arguments.pop("source"))
        if "over_classes" not in arguments:
            examples.need_labels()
    return arguments


if __name__ == "__main__":
    main()
