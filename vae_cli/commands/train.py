"""vae-train: the one way in to training. Configuration in, exit code out.

torch is imported only once the configuration has been accepted, so that help and errors come at once.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Sequence
from itertools import count, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vae_cli.commands import follow, sweep
from vae_cli.commands.shared import DEBUGGING, ERRORS, expected, guarded, own_folders, refuse_misused, require_memory
from vae_cli.config import words
from vae_cli.config.words import CONF, OVERLAYS
from vae_cli.system import ranks
from vae_cli.system.disk import SETTINGS, read_object, write
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.interruption import RESUMABLE, Interrupted, begin, deferred, heed
from vae_cli.system.lock import Busy, wait
from vae_cli.system.output import number, quoted, say, shell_assignment

if TYPE_CHECKING:
    from vae_cli.config.run import Config

FORCED = "++"  # before a setting: Hydra takes it whether the chosen options have it or not


def main() -> None:
    """Run vae-train; print errors as one line and exit with 1."""

    def body() -> None:
        heed()
        sys.argv[1:] = _prepared(sys.argv[1:])
        _run()
        if lines := sweep.failures():
            raise UserError(f"{len(lines)} jobs of the sweep failed", *lines, *sweep.unfinished())
        if lines := sweep.unfinished():
            raise UserError(*lines)

    guarded("vae-train", body)


def _run() -> None:
    """Let Hydra run the application; what stops a whole sweep, a launcher's error or a signal, is one line as well."""
    try:
        application()
    except KeyboardInterrupt as interrupt:
        raise Interrupted(words) if (words := sweep.how_to_go_on(sys.argv[1:])) else interrupt from None
    except ERRORS:
        raise
    except Exception as error:
        if DEBUGGING or not sweep.begun():
            raise
        if "No trials are completed" not in str(error):  # Optuna's, where all have failed: each is told of
            raise UserError(first_line(error), *sweep.failures()) from error


def _prepared(arguments: Sequence[str]) -> list[str]:
    """Check what Hydra would take amiss, and send it to the folder of the run to go on with, if any."""
    arguments = sorted(arguments, key=lambda each: each not in ("-m", "--multirun"))  # Hydra wants them first
    _remember_own_options(arguments)
    refuse_misused(arguments)
    several = bool({"-m", "--multirun"} & set(arguments))
    if several and {"--cfg", "-c"} & set(arguments):
        raise UserError("--cfg: shows the settings of one run; leave -m out")
    keys = {argument.partition("=")[0]: argument.partition("=")[2] for argument in arguments}
    if "trainer.epochs" in keys and keys.get("trainer.steps", "null") != "null":
        raise UserError("trainer.epochs: has no effect beside trainer.steps; give one of the two")
    if several and ranks.count() > 1:
        raise UserError(
            "-m: a sweep under torchrun is not allowed; with hydra/launcher=submitit_slurm, "
            "hydra.launcher.tasks_per_node=N makes each of its jobs parallel"
        )
    given = _unquoted(keys.get("resume") or keys.get("+resume") or keys.get("++resume") or "null")
    others = [argument for argument in arguments if argument.partition("=")[0].lstrip("+") != "resume"]
    if given not in ("null", "auto"):
        others = [f"{FORCED}{each}" if _of_own_option(each) else each for each in others]
    if ranks.rank() > 0:  # the first rank knows the folder
        return [*others, "hydra.run.dir=."]
    if given in ("null", "auto"):
        return list(arguments)
    if several:
        raise UserError(f"resume={given}: goes on with a single run, not with a sweep")
    folder = Path(given)
    for needed, there in (
        (".hydra/config.yaml", (folder / SETTINGS).is_file()),
        ("checkpoints/last.pt", _saved(folder)),
    ):
        if not there:
            jobs = sorted(str(path.parents[1]) for path in folder.glob("*/checkpoints/last.pt"))
            hint = f"; it is a sweep, choose one of its jobs: {', '.join(jobs[:9])}" if jobs else ""
            if (folder / ".hydra").is_dir() and not _saved(folder):
                hint = (
                    f"; it saved nothing yet: begin it anew with its whole command, "
                    f"{shell_assignment('hydra.run.dir', given)} resume=auto"
                )
            raise UserError(f"resume={given}: no run to go on with there ({needed} is missing){hint}")
    return [*others, f"resume={quoted(given)}", f"hydra.run.dir={quoted(given)}"]


def _of_own_option(argument: str) -> bool:
    """Whether an argument sets something of an option: a run to go on with has its own, which need not be the usual."""
    key = argument.partition("=")[0]
    return "." in key and key.partition(".")[0] in words.groups()


def _unquoted(value: str) -> str:
    """Return what Hydra reads from a value in quotes; one without them may be any path."""
    quote = value[:1]
    return value[1:-1].replace(f"\\{quote}", quote) if quote in ("'", '"') and value[-1:] == quote else value


def _remember_own_options(arguments: Sequence[str]) -> None:
    """Let error messages know the options of a --config-dir."""
    for flag, value in pairwise(arguments):
        if flag in ("--config-dir", "-cd"):
            words.OWN_CONF.append(Path(value))


@hydra.main(version_base="1.3", config_path=CONF, config_name="train")
def application(composed: DictConfig) -> float | None:
    """Train what a composed configuration says; return its `score` to a sweeper, None where the job failed."""
    begin()
    ranks.adopt_tasks()
    if ranks.rank() > 0:
        return follow.follow(lambda: _settings(composed), _accepted)
    job = HydraConfig.get()
    sweeping = job.mode == RunMode.MULTIRUN
    folder, claimed = Path(job.runtime.output_dir), False
    if sweeping:
        say(f"job {folder.name}: {job.job.override_dirname}")
    try:
        if not sweeping:
            _refuse_what_is_for_sweeps(composed)
        if earlier := follow.earlier():
            with contextlib.suppress(OSError):
                folder.rmdir()  # which Hydra has just made
            return _begin_or_go_on(composed, folder := earlier, sweeping)
        if composed.get("resume") == "auto" and not sweeping and not _typed("hydra.run.dir"):
            raise UserError(
                "resume=auto: needs a folder that stays the same from start to start; give hydra.run.dir=FOLDER"
            )
        if sweeping or composed.get("resume") == "auto":
            return _begin_or_go_on(composed, folder, sweeping)
        if not (resume := bool(composed.get("resume"))):
            folder = _claimed(folder, chosen=_typed("hydra.run.dir"))
            claimed = True
        return _train(composed, _resumed(folder, composed) if resume else _settings(composed), folder, resume)
    except BrokenPipeError:  # what reads our output went; no error of the run
        raise
    except Exception as error:
        if claimed:  # another run's claim is not ours to withdraw
            _withdraw(folder)
        line = expected(error)
        if DEBUGGING or not (sweeping or line):
            raise
        if not sweeping:
            sys.exit(f"vae-train: error: {line}")
        if isinstance(error, Busy):
            print(f"job {folder.name} left alone: {error}", file=sys.stderr)
        else:
            print(f"job {folder.name} failed: {sweep.failed(folder, error)}", file=sys.stderr)
        return None  # the others run; what failed is told again at the end
    except KeyboardInterrupt as interrupt:
        if claimed:
            _withdraw(folder)
        if sweep.orphaned():
            os._exit(RESUMABLE)  # rather than wait for another job
        again = shell_assignment("resume", os.path.relpath(folder))
        raise type(interrupt)(f"; go on with: vae-train {again}" if _saved(folder) else "") from None


def _begin_or_go_on(composed: DictConfig, folder: Path, sweeping: bool) -> float:
    """Train in a folder that stays: from the start, from its last checkpoint, or not at all where it is finished.

    So does every job of a sweep: its folder is the sweep's alone, and a launcher may start it again.
    """
    if sweeping:
        sweep.end_with_launcher()
        wait(folder, sweep.PATIENCE)
        (folder / sweep.REASON).unlink(missing_ok=True)
    settings, resume = _settings(composed), _saved(folder)
    if resume and not _refuse_others(settings, folder) and (summary := _summary(folder)):
        say(f"finished already: {os.path.relpath(folder)}")
        follow.lead(settings, None)
        return _score(settings, summary)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    return _train(composed, settings, folder, resume, sweeping)


def _refuse_what_is_for_sweeps(composed: DictConfig) -> None:
    """Refuse what a single run would pass over."""
    if option := HydraConfig.get().runtime.choices.get("sweep"):
        raise UserError(f"sweep={option}: has no effect on a single run; with -m it is a sweep")
    if OmegaConf.select(composed, "trainer.prune"):
        raise UserError("trainer.prune: has no effect on a single run, which has no siblings; -m makes a sweep")


def _refuse_others(settings: dict[str, Any], folder: Path) -> bool:
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


def _saved(folder: Path) -> bool:
    return any((folder / "checkpoints" / name).is_file() for name in ("last.pt", "previous.pt"))


def _summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary of a finished run; None of one that is not, or whose summary is damaged."""
    try:
        found = read_object(folder / "summary.json")
    except UserError:
        return None
    return found if "train/elbo" in found else None


def _score(settings: dict[str, Any], summary: dict[str, Any]) -> float:
    """Return what a sweeper is to maximise; train/elbo where there are no validation examples.

    Raises:
        UserError: a summary from elsewhere holds no number there.
    """
    key = settings["score"] if settings["score"] in summary else "train/elbo"
    if (found := number(summary[key])) is None:
        raise UserError(f"summary.json: {key}={summary[key]} is no number")
    return found


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
            if chosen and _saved(folder):
                raise UserError(
                    f"hydra.run.dir={folder}: holds a run already; go on with {shell_assignment('resume', folder)}, "
                    "or choose another folder"
                ) from None
            if chosen:
                raise UserError(
                    f"hydra.run.dir={folder}: holds a run already, which saved nothing yet; begin it anew with "
                    "resume=auto, or choose another folder"
                ) from None
        else:
            return candidate
    raise AssertionError("count() does not end")


def _withdraw(folder: Path) -> None:
    """Give a claimed folder up, where the run was refused before it wrote anything."""
    with contextlib.suppress(OSError):
        (folder / ".hydra").rmdir()  # it is empty until the run's settings are written
        (folder / ".lock").unlink(missing_ok=True)
        folder.rmdir()


def _accepted(settings: dict[str, Any]) -> Config:
    from vae_cli.config import validate

    config = validate(settings)
    _find_own_parts(settings)
    return config


def _train(composed: DictConfig, settings: dict[str, Any], folder: Path, resume: bool, sweeping: bool = False) -> float:
    config = _accepted(settings)
    require_memory("vae_cli.training.run")
    with deferred():
        from vae_cli.training import run  # brings torch

    word = {"settings": settings, "folder": str(folder.absolute()), "resume": resume, "sweeping": sweeping}
    follow.lead(_settings(composed), word)
    summary = run.train(config, folder, resume=resume, sweeping=sweeping, accepted=lambda: _record(folder, settings))
    say(f"report: {os.path.relpath(folder / 'report.html')}")
    say(f"tensorboard --logdir {shlex.quote(os.path.relpath(folder))}")
    return _score(settings, summary)


def _record(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings a run was accepted with, resolved, and what was typed to get them, resumptions included."""
    from vae_cli.config import typed

    now = (each.removeprefix(FORCED) for each in HydraConfig.get().overrides.task)
    given = [*typed(folder), *now]
    for name, content in (
        ("config", settings),
        ("overrides", [each for each in dict.fromkeys(given) if not each.startswith("resume=")]),
        ("hydra", {"hydra": OmegaConf.to_container(OmegaConf.structured(HydraConfig.get()))}),
    ):
        write(folder / ".hydra" / f"{name}.yaml", OmegaConf.to_yaml(OmegaConf.create(content)))


def _settings(composed: DictConfig) -> dict[str, Any]:
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


def _resumed(folder: Path, composed: DictConfig) -> dict[str, Any]:
    """Return the run's own settings with those that this command gives anew."""
    from vae_cli.config import MUST_STAY, stays
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
    own = OmegaConf.create(settings)
    for override in HydraConfig.get().overrides.task:
        key = override.split("=", 1)[0].lstrip("+~")
        if key == "resume":
            continue
        if stays(key):
            raise UserError(
                f"{override.removeprefix(FORCED)}: a resumed run keeps its own settings; trainer.* "
                f"(but {', '.join(MUST_STAY)}), optimizer.lr and where its data are (data.path, …) may change"
            )
        OmegaConf.update(own, key, OmegaConf.select(composed, key))
        if key == "trainer.epochs":
            OmegaConf.update(own, "trainer.steps", None)
    return _settings(own)


def _find_own_parts(settings: dict[str, Any]) -> None:
    """Make modules beside a --config-dir importable, and refuse foreign parts where none was given."""
    from vae_cli.config.trust import foreign

    own = own_folders()
    for group, content in settings.items():
        if not own and (target := foreign(group, content)):
            raise UserError(
                f"{group}._target_={target}: not a part of vae_cli; give the folder of yours with --config-dir"
            )


if __name__ == "__main__":
    main()
