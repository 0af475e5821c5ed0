"""Standard output, which may go away or fill up, and text and numbers as any file can hold them. No torch."""

from __future__ import annotations

import math
import os
import sys
from contextlib import suppress


def say(text: str) -> None:
    """Print a line; where there is no room, print nothing more: what a run does is not lost for it."""
    try:
        print(text, flush=True)
    except OSError:
        mute()


def mute() -> None:
    """Print nothing more, what still waits to be printed included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def number(value: object) -> float | None:
    """Return a finite number as a float; None for all else, which counts as missing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def writable(text: str) -> str:
    """Return a text that UTF-8 can hold: bytes of a file's name that are no letters stand there by their number."""
    return text.encode("utf-8", "backslashreplace").decode()
