"""Errors that a person can mend: one line each."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable

DEBUGGING = "HYDRA_FULL_ERROR" in os.environ  # set by the person: show tracebacks


class UserError(Exception):
    """Something the person at the terminal can mend; a command prints it and exits with 1.

    Args:
        line: what is wrong, in one line.
        details: lines below it.
    """

    def __init__(self, line: str, *details: str):
        super().__init__(line, *details)

    def __str__(self) -> str:
        return "\n".join(self.args)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def suggest(word: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?' where a known word resembles the given one, else ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
