"""Standard output, which may go away or fill up, and text, numbers and paths as others can read them. No torch."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress

NEAR = 0.1  # nats from its bound that a mutual information is marked at
PLAIN = re.compile(r"[\w./-]+")  # what neither a shell nor Hydra reads anything into


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


def bound_sign(numbers: Mapping[str, object], split: str, name: str) -> str:
    """Mark what the number of examples bounds: mutual information at its limit, and what the KL leaves beside it."""
    value, limit = (number(numbers.get(f"{split}/mutual_information{end}")) for end in ("", "_bound"))
    if value is None or limit is None or limit - value > NEAR:
        return ""
    return {"mutual_information": "≥ ", "marginal_kl": "≤ "}.get(name, "")


def assignment(key: str, path: object) -> str:
    """Return KEY=PATH as Hydra reads it: in quotes where need be."""
    text = str(path)
    return f"{key}={text if PLAIN.fullmatch(text) else quoted(text)}"


def quoted(text: str) -> str:
    """Return a text in quotes, as Hydra reads it."""
    return "'" + text.replace("'", "\\'") + "'"


def shell_assignment(key: str, path: object) -> str:
    """Return KEY=PATH as it is typed in a shell."""
    return shlex.quote(assignment(key, path))
