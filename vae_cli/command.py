"""What the commands share: errors as one line with an exit code, never a traceback. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vae_cli.errors import UserError, one_line
from vae_cli.interruption import RESUMABLE, Interrupted, ending
from vae_cli.output import mute, print_in_any_encoding

DEBUGGING = "HYDRA_FULL_ERROR" in os.environ  # set by the person: show tracebacks
RERUN = "--experimental-rerun"
ERRORS = (UserError, HydraException, OmegaConfBaseException, YAMLError, OSError)


def fraction(share: float, *, _root_: DictConfig, _node_: Node) -> float:
    """Return that share of the run's epochs: `${fraction:0.05}` in an option, so that schedules scale with the run.

    Raises:
        UserError: the run's length is not given in epochs.
    """
    if _root_.trainer.steps is not None:
        raise UserError(f"{_node_._get_full_key(None)}: required beside trainer.steps; it is a share of trainer.epochs")
    epochs = _root_.trainer.epochs
    return share * epochs if isinstance(epochs, (int, float)) else share  # a faulty one is told of later


OmegaConf.register_new_resolver("fraction", fraction, replace=True)


def guarded(name: str, body: Callable[[], object]) -> None:
    """Run a command; print an error as one line and exit with 1, after an interruption with 75 (resumable) or 130."""
    if sys.version_info >= (3, 14):  # hydra-core 1.3 hands argparse help texts that 3.14 refuses
        argparse.ArgumentParser._check_help = lambda self, action: None  # type: ignore[attr-defined]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors reach us, not Hydra's own printer
    print_in_any_encoding()
    try:
        try:
            _refuse_pickles(sys.argv[1:])
            body()
        finally:
            ending()
    except BrokenPipeError:  # `vae-train --help | head`
        mute()
    except ERRORS as error:
        if DEBUGGING:
            raise
        sys.exit(f"{name}: error: {one_line(error)}")
    except KeyboardInterrupt as interrupt:
        print(f"{name}: interrupted{interrupt}", file=sys.stderr)
        sys.exit(RESUMABLE if isinstance(interrupt, Interrupted) else 130)


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
def told(name: str) -> Iterator[None]:
    """Print an error within a Hydra application as one line and exit with 1: Hydra would put a line before it."""
    try:
        yield
    except BrokenPipeError:
        raise
    except ERRORS as error:
        if DEBUGGING:
            raise
        sys.exit(f"{name}: error: {one_line(error)}")


def own_folders() -> list[Path]:
    """Return the folders of the person's own parts (--config-dir), and make the modules beside them importable."""
    sources = HydraConfig.get().runtime.config_sources
    own = [source.path for source in sources if source.provider == "command-line"]
    sys.path[:0] = [path for path in own if path not in sys.path]
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
