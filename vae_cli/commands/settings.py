"""The settings of a run: as composed from what was typed, or as a run to go on with has them. No torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vae_cli.commands.arguments import FORCED
from vae_cli.commands.shared import own_folders
from vae_cli.config.words import OVERLAYS
from vae_cli.system.disk import SETTINGS
from vae_cli.system.errors import UserError
from vae_cli.system.output import shell_assignment

if TYPE_CHECKING:
    from vae_cli.config.run import Config


def plain_settings(composed: DictConfig) -> dict[str, Any]:
    """Return plain settings, their interpolations resolved and their paths absolute: a run goes on from anywhere."""
    from vae_cli.config import PATHS
    from vae_cli.config.types import COMMAND

    content = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    settings = {str(key): value for key, value in content.items() if key not in OVERLAYS} | {"resume": None}
    data = settings["data"] if isinstance(settings.get("data"), dict) else {}
    on_hub = str(data.get("_target_")).endswith(".huggingface") and not Path(str(data["path"])).exists()
    for key in PATHS:
        if isinstance(data.get(key), str) and not data[key].startswith(COMMAND) and not on_hub:
            data[key] = os.path.abspath(data[key])
    return settings


def resumed_settings(folder: Path, composed: DictConfig) -> dict[str, Any]:
    """Return the settings of the run in a folder, with those that this command gives anew.

    Raises:
        UserError: a setting that was typed stays as it is, or the run's own cannot be trusted.
    """
    own = OmegaConf.create(_stored(folder))
    for override in HydraConfig.get().overrides.task:
        key = override.split("=", 1)[0].lstrip("+~")
        if key != "resume":
            _refuse_to_change(key, override)
            OmegaConf.update(own, key, OmegaConf.select(composed, key))
        if key == "trainer.epochs":
            OmegaConf.update(own, "trainer.steps", None)
    return plain_settings(own)


def _stored(folder: Path) -> dict[str, Any]:
    """Return the settings in a run folder; they run no command and refer to nothing."""
    from vae_cli.config.stored import stored
    from vae_cli.config.trust import command

    settings = stored(folder)
    if key := command(settings["data"]):
        raise UserError(
            f"resume={folder}: its data.{key} would run a command; if you trust it, go on with the whole command of "
            f"the run and {shell_assignment('hydra.run.dir', folder)} resume=auto"
        )
    if "${" in str(settings):
        raise UserError(f"{folder / SETTINGS}: holds ${{…}}, which would be read as an interpolation")
    return settings


def _refuse_to_change(key: str, override: str) -> None:
    from vae_cli.config import MUST_STAY, stays

    if stays(key):
        raise UserError(
            f"{override.removeprefix(FORCED)}: a resumed run keeps its own settings; trainer.* "
            f"(but {', '.join(MUST_STAY)}), optimizer.lr and where its data are (data.path, …) may change"
        )


def differ_from_run(settings: dict[str, Any], folder: Path) -> bool:
    """Return whether settings differ from those of the run in a folder, in what a resumed run may be given anew.

    Raises:
        UserError: they differ in something else.
    """
    from vae_cli.config import differing, stays
    from vae_cli.config.stored import stored

    found = differing(stored(folder), settings)
    for key, (own, new) in found.items():
        if stays(key):
            raise UserError(f"{key}={new}: the run in {folder} has {own}; choose another folder for it")
    return bool(found)


def accept(settings: dict[str, Any]) -> Config:
    """Check settings and type them; make a person's own parts importable.

    Raises:
        UserError: they are refused.
    """
    from vae_cli.config import validate

    _find_own_parts(settings)  # first: their sources say what their settings may be
    return validate(settings)


def _find_own_parts(settings: dict[str, Any]) -> None:
    """Make modules beside a --config-dir importable, and refuse foreign parts where none was given."""
    from vae_cli.config.trust import foreign

    own = own_folders()
    for group, content in settings.items():
        if not own and (target := foreign(group, content)):
            raise UserError(
                f"{group}._target_={target}: not a part of vae_cli; give the folder of yours with --config-dir"
            )
