"""How the ranks of a parallel run start together: the first rank decides folder and settings, the others follow.

No torch at the top: the first rank's errors come before it is imported.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_cli.commands.shared import ERRORS
from vae_cli.config.words import one_line
from vae_cli.system import ranks
from vae_cli.system.errors import DEBUGGING, UserError
from vae_cli.system.interruption import RESUMABLE, Interrupted, deferred, heed_no_more

if TYPE_CHECKING:
    from vae_cli.config.run import Config

PAUSE = 1.0  # seconds in which torchrun ends a rank before it repeats what the first has said


def lead(own: dict[str, Any], said: dict[str, Any] | None) -> None:
    """As the first rank, tell the others the settings and the folder of a run, or that there is nothing to do."""
    if ranks.count() > 1:
        _word(own, said)


def follow(own: Callable[[], dict[str, Any]], accepted: Callable[[dict[str, Any]], Config]) -> float:
    """Train as a rank above the first: with its settings, in its run; it prints only its own errors.

    Args:
        own: gives the settings that this rank was started with.
        accepted: types settings.
    """
    heed_no_more()
    try:
        settings = own()
        word = _word(settings, None)
        if word is not None:
            _refuse_strangers(word, settings)
            _train(word, settings, accepted)
        return math.nan
    except Exception as error:
        time.sleep(PAUSE)
        if DEBUGGING or not isinstance(error, ERRORS):
            raise
        if not isinstance(error, ranks.Said):
            ranks.say(one_line(error))
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        sys.exit(RESUMABLE if isinstance(interrupt, Interrupted) else 130)


def earlier() -> Path | None:
    """Return the run's folder where torchrun has started its processes before."""
    if ranks.count() == 1:
        return None
    with deferred():
        from vae_cli.system import parallel

    folder = parallel.remembered()
    return None if folder is None else Path(folder)


def _word(own: dict[str, Any], said: dict[str, Any] | None) -> Any:
    """Meet the other ranks, and return the first rank's message."""
    with deferred():
        from vae_cli.system import parallel
        from vae_cli.system.device import choose_device

    parallel.start(choose_device(own["trainer"]["device"]))
    if said is not None:
        parallel.remember(said["folder"])
    return parallel.shared(None if said is None else said | {"composed": own, "code": ranks.code()})


def _refuse_strangers(word: dict[str, Any], own: dict[str, Any]) -> None:
    """Refuse to train with a rank of other settings or another version.

    Raises:
        UserError: the ranks differ.
    """
    from vae_cli.config import MOVES, differing

    for key, (theirs, mine) in differing(word["composed"], own).items():
        if key not in MOVES:  # machines may each have their own copy of the data
            raise UserError(f"{key}={mine}: rank 0 has {theirs}; ranks need the same settings")
    if word["code"] != ranks.code():
        raise UserError("another version of vae_cli runs as rank 0; ranks need the same code")


def _train(word: dict[str, Any], own: dict[str, Any], accepted: Callable[[dict[str, Any]], Config]) -> None:
    from vae_cli.config import PATHS
    from vae_cli.training import run

    places = {key: own["data"][key] for key in PATHS if key in own["data"]}
    config = accepted(word["settings"] | {"data": word["settings"]["data"] | places})
    run.train(config, Path(word["folder"]), resume=word["resume"], sweeping=word["sweeping"])
