"""vae-train: the one way in to training. Configuration in, exit code out.

torch is imported only once the configuration has been accepted, so that help and errors come at once.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vae_cli import errors, sweep
from vae_cli.command import DEBUGGING, guarded, own_folders
from vae_cli.errors import CONF, UserError, one_line
from vae_cli.interruption import Interrupted

SETTINGS = Path(".hydra") / "config.yaml"
OVERLAYS = ("experiment", "debug")  # groups that only set others
PATHS = ("root", "path", "labels", "valid_path", "test_path", "index")  # under data
MAY_CHANGE = ("trainer.", "optimizer.lr")  # settings that a resumed run may be given anew
MUST_STAY = ("trainer.batch_size", "trainer.ema")  # but for these


def main() -> None:
    """Run vae-train; print errors as one line and exit with 1."""

    def body() -> None:
        signal.signal(signal.SIGTERM, _terminated)
        sys.argv[1:] = _prepared(sys.argv[1:])
        application()
        if lines := sweep.failures():
            raise UserError(f"{len(lines)} jobs of the sweep failed\n" + "\n".join(lines))

    guarded("vae-train", body)


def _terminated(*_: object) -> None:
    """Stop where no step is under way: while data load, or after training, which is saved by then."""
    raise Interrupted


def _prepared(arguments: Sequence[str]) -> list[str]:
    """Check what Hydra would take amiss, and send it to the folder of the run to go on with, if any."""
    _remember_own_options(arguments)
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in errors.groups() and key not in OVERLAYS and (value == "null" or value.startswith("[")):
            raise UserError(f"{argument}: one option of conf/{key} is allowed (a sweep of several: -m {key}=A,B)")
    keys = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
    if "trainer.epochs" in keys and keys.get("trainer.steps", "null") != "null":
        raise UserError("trainer.epochs: has no effect beside trainer.steps; give one of the two")
    given = (keys.get("resume") or keys.get("+resume") or keys.get("++resume") or "null").strip("'\"")
    if given in ("null", "auto"):
        return list(arguments)
    if "-m" in arguments or "--multirun" in arguments:
        raise UserError(f"resume={given}: goes on with a single run, not with a sweep")
    folder = Path(given)
    for needed, there in (
        (".hydra/config.yaml", (folder / SETTINGS).is_file()),
        ("checkpoints/last.pt", _saved(folder)),
    ):
        if not there:
            jobs = sorted(str(path.parents[1]) for path in folder.glob("*/checkpoints/last.pt"))
            hint = f"; it is a sweep, choose one of its jobs: {', '.join(jobs[:9])}" if jobs else ""
            raise UserError(f"resume={given}: no run to go on with there ({needed} is missing){hint}")
    quoted = "'" + str(folder).replace("'", "\\'") + "'"
    others = [argument for argument in arguments if argument.partition("=")[0].lstrip("+") != "resume"]
    return [*others, f"resume={quoted}", f"hydra.run.dir={quoted}"]


def _remember_own_options(arguments: Sequence[str]) -> None:
    """Let error messages know the options of a --config-dir."""
    for flag, value in pairwise(arguments):
        if flag in ("--config-dir", "-cd"):
            errors.OWN_CONF.append(Path(value))


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def application(composed: DictConfig) -> float:
    """Train what a composed configuration says; return valid/elbo (without one, train/elbo) to a sweeper."""
    job = HydraConfig.get()
    sweeping = job.mode == RunMode.MULTIRUN
    if sweeping:
        print(f"job {job.job.num}: {job.job.override_dirname}")
    folder, claimed = Path(job.runtime.output_dir), False
    try:
        if composed.get("resume") == "auto":
            return _begin_or_go_on(composed, folder, sweeping)
        if not (resume := bool(composed.get("resume"))):
            folder = _claimed(folder, chosen=sweeping or _typed("hydra.run.dir"))
            claimed = True
        return _train(_resumed(folder, composed) if resume else _settings(composed), folder, resume)
    except Exception as error:
        if claimed:  # another run's claim is not ours to withdraw
            _withdraw(folder)
        expected = isinstance(error, (UserError, OmegaConfBaseException))
        if DEBUGGING or not (sweeping or expected):
            raise
        if not sweeping:
            sys.exit(f"vae-train: error: {one_line(error)}")
        print(f"job {job.job.num} failed: {sweep.failed(folder, error)}", file=sys.stderr)
        return math.nan  # the others run; what failed is told again at the end
    except KeyboardInterrupt as interrupt:
        shown = shlex.quote(f"resume={os.path.relpath(folder)}")
        raise type(interrupt)(f"; go on with: vae-train {shown}" if _saved(folder) else "") from None


def _begin_or_go_on(composed: DictConfig, folder: Path, sweeping: bool) -> float:
    """Train in a folder that stays: from the start, from its last checkpoint, or not at all where it is finished."""
    key = "hydra.sweep.dir" if sweeping else "hydra.run.dir"
    if not _typed(key):
        raise UserError(f"resume=auto: needs a folder that stays the same from start to start; give {key}=FOLDER")
    settings, resume = _settings(composed), _saved(folder)
    summary = folder / "summary.json"
    if resume and not _refuse_others(settings, folder) and summary.is_file():
        print(f"finished already: {os.path.relpath(folder)}")
        return _score(json.loads(summary.read_text()))
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    return _train(settings, folder, resume)


def _refuse_others(settings: dict[str, Any], folder: Path) -> bool:
    """Return whether settings differ from those of the run in a folder, in what a resumed run may be given anew.

    Raises:
        UserError: they differ in something else.
    """
    from vae_cli.config import flat

    own, new = flat(_stored(folder)), flat(settings)
    differing = [key for key in {**own, **new} if own.get(key) != new.get(key) and key != "resume"]
    for key in differing:
        if not key.startswith(MAY_CHANGE) or key in MUST_STAY:
            raise UserError(
                f"{key}={new.get(key)}: the run in {folder} has {own.get(key)}; choose another folder for it"
            )
    return bool(differing)


def _saved(folder: Path) -> bool:
    return any((folder / "checkpoints" / name).is_file() for name in ("last.pt", "previous.pt"))


def _score(summary: dict[str, Any]) -> float:
    """Return valid/elbo, or without one train/elbo, to a sweeper."""
    return summary.get("valid/elbo", summary["train/elbo"])


def _typed(key: str) -> bool:
    return any(override.startswith(f"{key}=") for override in HydraConfig.get().overrides.hydra)


def _claimed(folder: Path, *, chosen: bool) -> Path:
    """Take a folder that no other run has: the given one, or, where nobody chose it, its next free neighbour.

    Raises:
        UserError: a chosen folder holds a run already.
    """
    for k in count(1):
        candidate = folder if k == 1 else folder.with_name(f"{folder.name}-{k}")
        try:
            (candidate / ".hydra").mkdir(parents=True)
        except FileExistsError:
            if chosen:
                raise UserError(
                    f"hydra.run.dir={folder}: holds a run already; go on with resume={folder}, or choose another folder"
                ) from None
        else:
            return candidate
    raise AssertionError("count() does not end")


def _withdraw(folder: Path) -> None:
    """Give a claimed folder up, where the run was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        (folder / ".lock").unlink(missing_ok=True)
        (folder / ".hydra").rmdir()
        folder.rmdir()


def _train(settings: dict[str, Any], folder: Path, resume: bool) -> float:
    from vae_cli.config import validate

    config = validate(settings)
    _find_own_parts(settings)
    from vae_cli import run  # brings torch

    summary = run.train(config, folder, resume=resume, accepted=lambda: _record(folder, settings))
    print(f"report: {os.path.relpath(folder / 'report.html')}")
    print(f"tensorboard --logdir {shlex.quote(os.path.relpath(folder))}")
    return _score(summary)


def _record(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings a run was accepted with, resolved, and what was typed to get them, resumptions included."""
    earlier = folder / ".hydra" / "overrides.yaml"
    typed = [*(OmegaConf.load(earlier) if earlier.is_file() else []), *HydraConfig.get().overrides.task]
    for name, content in (
        ("config", settings),
        ("overrides", [each for each in dict.fromkeys(typed) if not each.startswith("resume=")]),
        ("hydra", {"hydra": OmegaConf.to_container(OmegaConf.structured(HydraConfig.get()))}),
    ):
        OmegaConf.save(OmegaConf.create(content), folder / ".hydra" / f"{name}.yaml.partial")
        (folder / ".hydra" / f"{name}.yaml.partial").replace(folder / ".hydra" / f"{name}.yaml")


def _settings(composed: DictConfig) -> dict[str, Any]:
    """Return plain settings, their interpolations resolved and their paths absolute: a run goes on from anywhere."""
    from vae_cli.schema import COMMAND

    content = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    settings = {str(key): value for key, value in content.items() if key not in OVERLAYS} | {"resume": None}
    data = settings["data"] if isinstance(settings.get("data"), dict) else {}
    on_hub = str(data.get("_target_")).endswith(".huggingface") and not Path(str(data["path"])).exists()
    for key in PATHS:
        if isinstance(data.get(key), str) and not data[key].startswith(COMMAND) and not on_hub:
            data[key] = os.path.abspath(data[key])
    return settings


def _resumed(folder: Path, composed: DictConfig) -> dict[str, Any]:
    """Return the run's own settings with those that this command gives anew."""
    from vae_cli.schema import command

    own = OmegaConf.create(stored := _stored(folder))
    if key := command(stored.get("data")):
        raise UserError(
            f"resume={folder}: its data.{key} would run a command; if you trust it, go on with the whole command of "
            f"the run and hydra.run.dir={folder} resume=auto"
        )
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
        if key == "trainer.epochs":
            OmegaConf.update(own, "trainer.steps", None)
    return _settings(own)


def _stored(folder: Path) -> dict[str, Any]:
    """Return the settings that a run was accepted with; they are plain, and what would be interpolated is refused.

    Raises:
        UserError: they cannot be read, or are no settings.
    """
    import yaml

    path = folder / SETTINGS
    try:
        text = path.read_text()
        found = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({errors.first_line(error)})") from error
    if not isinstance(found, dict) or "${" in text:
        raise UserError(f"{path}: holds no plain settings of a run")
    return found


def _find_own_parts(settings: dict[str, Any]) -> None:
    """Make modules beside a --config-dir importable, and refuse foreign parts where none was given."""
    from vae_cli.schema import foreign

    own = own_folders()
    for group, content in settings.items():
        if not own and (target := foreign(group, content)):
            raise UserError(
                f"{group}._target_={target}: not a part of vae_cli; give the folder of yours with --config-dir"
            )


if __name__ == "__main__":
    main()
