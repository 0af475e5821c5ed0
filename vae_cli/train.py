"""vae-train: the one way in to training. Configuration in, exit code out.

torch is imported only once the configuration has been accepted, so that help and errors come at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_cli.errors import CONF, UserError, one_line

DEBUGGING = "HYDRA_FULL_ERROR" in os.environ  # set by the person: show tracebacks
MAY_CHANGE = ("trainer.", "optimizer.lr")  # settings that a resumed run may be given anew
MUST_STAY = ("trainer.batch_size", "trainer.ema")  # but for these


def main() -> None:
    """Run vae-train; print errors as one line and exit with 1."""
    if sys.version_info >= (3, 14):  # hydra-core 1.3 hands argparse help texts that 3.14 refuses
        argparse.ArgumentParser._check_help = lambda self, action: None  # type: ignore[attr-defined]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us, not Hydra's own printer
    try:
        sys.argv[1:] = _resuming(sys.argv[1:])
        application()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if DEBUGGING:
            raise
        sys.exit(f"vae-train: error: {one_line(error)}")
    except BrokenPipeError:  # `vae-train --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt as interrupt:
        print(f"vae-train: interrupted{interrupt}", file=sys.stderr)
        sys.exit(130)


def _resuming(arguments: Sequence[str]) -> list[str]:
    """Send Hydra to the folder of the run to go on with, and keep it from writing there."""
    given = [argument.removeprefix("resume=").strip("'\"") for argument in arguments if argument.startswith("resume=")]
    if not given or given[-1] in ("", "null"):
        return list(arguments)
    if "-m" in arguments or "--multirun" in arguments:
        raise UserError(f"resume={given[-1]}: goes on with a single run, not with a sweep")
    folder = Path(given[-1])
    for needed in (".hydra/config.yaml", "checkpoints/last.pt"):
        if not (folder / needed).is_file():
            raise UserError(f"resume={given[-1]}: no run to go on with there ({needed} is missing)")
    quoted = str(folder).replace("'", "\\'")
    return [*arguments, f"hydra.run.dir='{quoted}'", "hydra.output_subdir=null"]


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def application(composed: DictConfig) -> float:
    """Train what a composed configuration says; return valid/elbo (without one, train/elbo) to a sweeper."""
    job = HydraConfig.get()
    sweeping = job.mode == RunMode.MULTIRUN
    if sweeping:
        print(f"job {job.job.num}: {job.job.override_dirname}")
    try:
        return _train(composed)
    except (UserError, OmegaConfBaseException) as error:
        if sweeping:
            print(f"job {job.job.num} failed: {one_line(error)}", file=sys.stderr)
        if sweeping or DEBUGGING:
            raise  # a sweep goes on with its other jobs
        _remove_if_empty(Path(job.runtime.output_dir))
        sys.exit(f"vae-train: error: {one_line(error)}")
    except KeyboardInterrupt:
        folder = Path(os.path.relpath(job.runtime.output_dir))
        saved = (folder / "checkpoints" / "last.pt").exists()
        raise KeyboardInterrupt(f"; go on with: vae-train resume={folder}" if saved else "") from None


def _train(composed: DictConfig) -> float:
    from vae_cli.config import validate

    folder = Path(HydraConfig.get().runtime.output_dir)
    resume = composed.get("resume")
    settings = _settings(composed)
    if resume:
        settings = _resumed(folder, composed)
    config = validate(settings)
    _find_own_parts(settings)
    if resume:
        OmegaConf.save(OmegaConf.create(settings), folder / ".hydra" / "config.yaml")
    from vae_cli import run  # brings torch

    summary = run.train(config, folder, resume=bool(resume))
    print(f"tensorboard --logdir {os.path.relpath(folder)}")
    return summary.get("valid/elbo", summary["train/elbo"])


def _remove_if_empty(folder: Path) -> None:
    """Remove the folder of a run that was refused before it wrote anything of its own."""
    if folder.is_dir() and {entry.name for entry in folder.iterdir()} == {".hydra"}:
        shutil.rmtree(folder)


def _settings(composed: DictConfig) -> dict[str, Any]:
    content = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items() if key not in ("experiment", "debug")}


def _resumed(folder: Path, composed: DictConfig) -> dict[str, Any]:
    """Return the run's own settings with those that this command gives anew."""
    own = OmegaConf.load(folder / ".hydra" / "config.yaml")
    for override in HydraConfig.get().overrides.task:
        key = override.split("=", 1)[0].lstrip("+~")
        if key == "resume":
            continue
        if not key.startswith(MAY_CHANGE) or key in MUST_STAY:
            raise UserError(
                f"{override}: a resumed run keeps its own settings; "
                f"trainer.* (but {', '.join(MUST_STAY)}) and optimizer.lr may change"
            )
        OmegaConf.update(own, key, OmegaConf.select(composed, key))
    assert isinstance(own, DictConfig)
    return _settings(own)


def _find_own_parts(settings: dict[str, Any]) -> None:
    """Make modules beside a --config-dir importable, and refuse foreign parts where none was given."""
    sources = HydraConfig.get().runtime.config_sources
    own = [source.path for source in sources if source.provider == "command-line"]
    sys.path[:0] = [path for path in own if path not in sys.path]
    for group, content in settings.items():
        target = content.get("_target_", "vae_cli.") if isinstance(content, dict) else "vae_cli."
        if not own and not target.startswith(("vae_cli.", "torch.optim.")):
            raise UserError(
                f"{group}._target_={target}: not a part of vae_cli; give the folder of yours with --config-dir"
            )


if __name__ == "__main__":
    main()
