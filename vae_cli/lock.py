"""One process at a time trains in a folder. The system drops the lock of a process that dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vae_cli.errors import UserError

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]


class Busy(UserError):
    """Another process trains in a folder."""


def wait(folder: Path, seconds: float) -> None:
    """Wait until no other process holds a folder, for so long at most.

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
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder within the block.

    Raises:
        Busy: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _take(number, folder)
        yield
    finally:
        os.close(number)


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
