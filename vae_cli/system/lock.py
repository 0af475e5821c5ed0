"""One process at a time trains in a folder. The system drops the lock of a process that dies."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vae_cli.system.errors import UserError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]


class Busy(UserError):
    """Another process trains in a folder."""


def wait(folder: Path, seconds: float) -> None:
    """Wait until no other process holds the lock of a folder, up to a time limit.

    Raises:
        Busy: another process still holds it.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            with locked(folder):
                return
        except Busy:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], None]]:
    """Lock a folder within the block. Calling what is yielded raises once the folder was deleted or renamed.

    Raises:
        Busy: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        _take(number, folder)
        yield lambda: _refuse_to_go_on_without(folder, number)
    finally:
        os.close(number)


def _refuse_to_go_on_without(folder: Path, number: int) -> None:
    """Raise if a folder is no longer the one that was locked: what is written to it would be lost.

    Raises:
        UserError: it was deleted or renamed.
    """
    held = os.fstat(number)
    try:
        there = os.stat(folder / ".lock")
    except OSError:
        there = None
    if there is None or (there.st_dev, there.st_ino) != (held.st_dev, held.st_ino):
        raise UserError(
            f"{folder}: deleted or renamed while the run wrote into it; one that was renamed goes on from its last "
            "checkpoint with resume=ITS NEW NAME"
        )


def _take(number: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(number, 32, 0).decode(errors="replace").strip()
        raise Busy(f"{folder}: another process ({holder or 'unknown'}) trains there") from None
    except OSError:  # a file system that knows no locks
        return
    with suppress(OSError):  # a full disk costs the other's message, not the run
        os.ftruncate(number, 0)
        os.pwrite(number, str(os.getpid()).encode(), 0)
