"""Files that are there whole or not at all, and errors that name them. No torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vae_cli.errors import UserError, first_line

SETTINGS = Path(".hydra") / "config.yaml"  # of a run, in its folder
TYPED = Path(".hydra") / "overrides.yaml"  # what was typed to get them


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Within the block a file is written; an error of the disk names it.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or first_line(error)})") from error


def refuse_links(folder: Path) -> None:
    """Refuse the folder of a run in which something is a link, or no file: what is written there could land outside.

    Raises:
        UserError: names it.
    """
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise UserError(f"{path}: a link or no file; the folder of a run holds files of its own alone")


@contextmanager
def whole(path: Path, mark: str = "") -> Iterator[Path]:
    """Within the block a file is written beside `path`, whose name it takes at the end: no reader sees a part of it.

    Args:
        path: what the file will be called.
        mark: sets apart files beside it that several processes write at once.
    """
    partial = path.with_name(f"{path.name}{mark}.partial")
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
