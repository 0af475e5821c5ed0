"""What the commands share: errors as one line with an exit code, never a traceback. No torch."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vae_cli.config import resolvers  # noqa: F401  what options may refer to
from vae_cli.config.words import OVERLAYS, groups, one_line
from vae_cli.system.errors import DEBUGGING, UserError, first_line
from vae_cli.system.interruption import RESUMABLE, Interrupted, begin, ending
from vae_cli.system.output import mute, print_in_any_encoding

COMPLETION = re.compile(r"(install|uninstall|query)=(bash|fish|zsh)")
COMPLETION_ALLOWED = "install=SHELL, uninstall=SHELL or query=SHELL, of bash, fish or zsh,"
RERUN = "--experimental-rerun"
ERRORS = (UserError, HydraException, OmegaConfBaseException, YAMLError, OSError)


def guarded(name: str, body: Callable[[], object]) -> None:
    """Run a command; print an error as one line and exit with 1, after an interruption with 75 (resumable) or 130."""
    if sys.version_info >= (3, 14):  # hydra-core 1.3 hands argparse help texts that 3.14 refuses
        argparse.ArgumentParser._check_help = lambda self, action: None  # type: ignore[attr-defined]
    print_in_any_encoding()
    try:
        try:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us, not Hydra's own printer
            _require_working_folder()
            _refuse_pickles(sys.argv[1:])
            body()
        finally:
            ending()
            if not DEBUGGING:  # what Python started us, a notebook or a test, goes on without it
                os.environ.pop("HYDRA_FULL_ERROR", None)
    except BrokenPipeError:  # `vae-train --help | head`
        mute()
    except Exception as error:
        if DEBUGGING or not (line := expected(error)):
            raise
        sys.exit(f"{name}: error: {line}")
    except KeyboardInterrupt as interrupt:
        print(f"{name}: interrupted{interrupt}", file=sys.stderr)
        sys.exit(RESUMABLE if isinstance(interrupt, Interrupted) else 130)


def run_hydra(name: str, application: Callable[[], object]) -> None:
    """Run a Hydra application as a command; print errors as one line and exit with 1."""

    def body() -> None:
        refuse_misused(sys.argv[1:])
        application()

    guarded(name, body)


def refuse_misused(arguments: Sequence[str]) -> None:
    """Refuse arguments that Hydra would pass over, or answer with a traceback.

    Raises:
        UserError: names the first.
    """
    if "--resolve" in arguments and not {"--cfg", "-c", "--help", "-h"} & set(arguments):
        raise UserError("--resolve: has no effect alone; --cfg job --resolve is allowed")
    if {"--shell-completion", "-sc"} & set(arguments) and not any(map(COMPLETION.fullmatch, arguments)):
        raise UserError(f"--shell-completion: {COMPLETION_ALLOWED} is allowed")
    chosen: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        group = key.strip("+~")
        if equals and not group:
            raise UserError(f"{argument}: has no key; KEY=VALUE is allowed")
        if equals and (group in groups() or group.partition("/")[0] == "hydra"):
            _refuse_choice(argument, group, value)
            if chosen.setdefault(group, value) != value:
                raise UserError(f"{group}: given twice ({chosen[group]}, {value}); once is allowed")


def _refuse_choice(argument: str, group: str, value: str) -> None:
    """Refuse what chooses no option of a group."""
    if argument.startswith("+") and group in groups():
        raise UserError(f"{argument}: {group} has its place already; drop the +")
    if value == "null" or (value.startswith("[") and group not in OVERLAYS):
        hint = "or leave it out for none" if group in OVERLAYS else f"a sweep of several: -m {group}=A,B"
        raise UserError(f"{argument}: one option of {group if '/' in group else f'conf/{group}'} is allowed ({hint})")


def expected(error: Exception) -> str | None:
    """Return the line for an error that the person can mend; None for a mistake of ours, whose traceback is needed."""
    if isinstance(error, ERRORS):
        return one_line(error)
    if (isinstance(error, ImportError) and "failed to map segment" in str(error)) or isinstance(error, MemoryError):
        return f"out of memory: lower what the command needs, or raise `ulimit -v` ({first_line(error)})"
    return one_line(error) if _raised_by_hydra(error) else None


def _raised_by_hydra(error: Exception) -> bool:
    """Whether Hydra itself raised an error: what was typed is wrong, as no application had begun."""
    names = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return names[-1].partition(".")[0] in ("hydra", "omegaconf") if names else False


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder is no longer there; change to one that is") from None


def _refuse_pickles(arguments: Sequence[str]) -> None:
    """Refuse Hydra's flag that reads settings from a pickle, whose code would run; argparse takes its beginnings too.

    Raises:
        UserError: it was given.
    """
    for argument in arguments:
        flag = argument.partition("=")[0]
        if flag.startswith("--e") and RERUN.startswith(flag):
            raise UserError(f"{argument}: not allowed, it would run what a pickle holds; give the settings themselves")


@contextmanager
def exit_on_error(name: str) -> Iterator[None]:
    """Print an error within a Hydra application as one line and exit with 1: Hydra would put a line before it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except Exception as error:
        if DEBUGGING or not (line := expected(error)):
            raise
        sys.exit(f"{name}: error: {line}")


def require_memory(module: str) -> None:
    """Where the address space is limited (`ulimit -v`), import a module in a process of its own, which may abort.

    The C++ of torch ends a process that is short of memory while it is loaded, without an exception.

    Raises:
        UserError: that failed.
    """
    if module in sys.modules or not _memory_is_limited():
        return
    if not (child := os.fork()):
        _import_silently(module)
    if os.waitpid(child, 0)[1] != 0:
        raise UserError("out of memory: torch cannot be loaded within this `ulimit -v`; a higher one is allowed")


def _memory_is_limited() -> bool:
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _import_silently(module: str) -> None:
    """Import a module as all that this process does."""
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        import_module(module)
        os._exit(0)
    finally:
        os._exit(1)


def import_torch() -> None:
    """Import torch, and begin the work of a command."""
    require_memory("torch")
    import torch  # noqa: F401

    begin()


def own_folders() -> list[Path]:
    """Return the folders of the person's own parts (--config-dir), and make the modules beside them importable."""
    sources = HydraConfig.get().runtime.config_sources
    own = [source.path for source in sources if source.provider == "command-line"]
    if new := [path for path in own if path not in sys.path]:
        sys.path[:0] = new
        from vae_cli.config.check import forget  # not before it is needed: it takes a while

        forget()
    return [Path(path) for path in own]


@contextmanager
def new_folder(usual: Path, output: str | None) -> Iterator[Path]:
    """Make a new folder for results: the given one, or NAME, NAME-2, … Nothing is overwritten; an empty one goes again.

    Raises:
        UserError: the given folder holds something.
    """
    folder = _free(usual) if output is None else Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output={output}: holds something already; a new or empty folder is allowed")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _free(usual: Path) -> Path:
    names = (usual if k == 1 else usual.with_name(f"{usual.name}-{k}") for k in count(1))
    return next(folder for folder in names if not folder.exists())
