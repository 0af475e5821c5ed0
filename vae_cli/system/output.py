"""Printing that survives a closed or full stdout; text and numbers for shells, Hydra and spreadsheets. No torch."""

from __future__ import annotations

import codecs
import math
import os
import re
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress

NEAR = 0.1  # nats from its bound that a mutual information is marked at
PLAIN = re.compile(r"[\w./-]+")  # what neither a shell nor Hydra reads anything into
BEYOND_ASCII = {"±": "+-", "≥": ">=", "≤": "<=", "‖": "||", "→": "->", "…": "...", "−": "-", "×": "x"}
INVISIBLE = (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))  # ESC, ends of lines, …
ESCAPED = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in INVISIBLE} | {9: "\\t", 10: "\\n"}
FORMULA = ("=", "+", "-", "@")  # how a spreadsheet's formula begins


def say(text: str) -> None:
    """Print a line. If stdout is closed or full, print nothing from then on: the run goes on."""
    try:
        print(writable(text), flush=True)
    except OSError:
        mute()


def mute() -> None:
    """Print nothing from here on, buffered text included."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_in_any_encoding() -> None:
    """Let standard output replace letters that its encoding lacks (PYTHONIOENCODING=ascii), where it would fail."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):  # no stream of text, or a closed one
            stream.reconfigure(errors="plain")  # type: ignore[union-attr]


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace letters that cannot be encoded: ± by +-, others by their code point."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    likeness = (BEYOND_ASCII.get(each) or each.encode("ascii", "backslashreplace").decode() for each in lacking)
    return "".join(likeness), error.end


codecs.register_error("plain", _plain)


def number(value: object) -> float | None:
    """Return a finite number as a float; None for anything else, which counts as missing."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    with suppress(OverflowError):
        return float(value) if math.isfinite(value) else None
    return None


def writable(text: str) -> str:
    """Return a line that UTF-8 can hold and a terminal can show: other characters become their code point.

    These are ESC and other control characters, ends of lines, and bytes of a file's name that are not UTF-8.
    """
    return text.translate(ESCAPED).encode("utf-8", "backslashreplace").decode()


def cell(value: object) -> object:
    """Return a value for a CSV file; a text that a spreadsheet would take for a formula begins with an apostrophe."""
    if not isinstance(value, str):
        return value
    text = writable(value)
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text)
        return True
    return False


def bound_sign(numbers: Mapping[str, object], split: str, name: str) -> str:
    """Return the sign of a value that the number of examples bounds: mutual information at its limit, or the rest."""
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
