"""Files written whole or not at all, and errors that name them. No torch."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vae_cli.system.errors import UserError, first_line
from vae_cli.system.output import cell

SETTINGS = Path(".hydra") / "config.yaml"  # of a run, in its folder
TYPED = Path(".hydra") / "overrides.yaml"  # what was typed to get them
NEVER_WRITTEN_IN_PLACE = (".pt", ".pt.partial")  # checkpoints: a new one takes the name of the old


class Unwritable(UserError):
    """A file cannot be written; the message names it."""


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Within the block a file is written; an error of the disk names it.

    Raises:
        Unwritable: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise Unwritable(f"{path}: cannot be written ({error.strerror or first_line(error)})") from error


@contextmanager
def whole(path: Path, mark: str = "") -> Iterator[Path]:
    """Write to a temporary file next to `path` within the block, then rename it: no reader sees a part of it.

    An existing file is replaced, never written into. If it is a link, its target stays unchanged.

    Args:
        path: what the file will be called.
        mark: sets apart files beside it that several processes write at once.

    Raises:
        Unwritable: the file cannot be written.
    """
    partial = path.with_name(f"{path.name}{mark}.partial")
    try:
        with written(path):
            partial.unlink(missing_ok=True)
            yield partial
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def write(path: Path, content: str | bytes, mark: str = "") -> Path:
    """Write a whole file at once, text as UTF-8, and return its path; see `whole`."""
    with whole(path, mark) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "backslashreplace"))
    return path


def not_written(what: str, error: Exception) -> str:
    """Return the line that says what could not be written, and why; where the error names the file, its own."""
    return str(error) if isinstance(error, Unwritable) else f"{what}: could not be written ({first_line(error)})"


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> Path:
    """Write a whole CSV file and return its path. Text that looks like a spreadsheet formula is quoted."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([cell(value) for value in row] for row in rows)
    return write(path, text.getvalue())


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object that a file holds.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: cannot be read (no JSON object)")
    return found


def refuse_links(folder: Path, *, deep: bool = True) -> None:
    """Refuse a folder that holds links or special files: what is written there could land outside.

    Args:
        folder: of a run; or of a sweep, whose jobs each look into their own.
        deep: look into the folders within as well.

    Raises:
        UserError: names it.
    """
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            _refuse_link(Path(place, name))
        if not deep:
            return


def _refuse_link(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:  # another process has just replaced it
        return
    if not (stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)):
        raise UserError(f"{path}: a link or no file; the folder of a run holds files of its own alone")
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1 and not path.name.endswith(NEVER_WRITTEN_IN_PLACE):
        raise UserError(
            f"{path}: a hard link, the file has another name elsewhere; the folder of a run holds files of its own "
            "alone (cp -r makes them so)"
        )
