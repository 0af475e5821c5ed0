"""Your own pictures: a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vae_cli.config.types import Color, ExistingPath, Frame, OnBroken, Resize
from vae_cli.data.batches.cache import remembered, stamp
from vae_cli.data.decoding import MODES, Unreadable, decode, frame
from vae_cli.data.examples import Examples, Splits
from vae_cli.system.errors import UserError

OTHERS = {".heic", ".heif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".tga", ".exr", ".hdr", ".dcm", ".raw", ".dng",
          ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}  # pictures that are not read  # fmt: skip
SHOWN = 5  # files that a line names
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def images(*, path: ExistingPath, size: Frame, color: Color, resize: Resize, on_broken: OnBroken) -> Splits:
    """Return the pictures of a folder: [N, C, H, W] bytes; its subfolders, where there are any, are the classes."""
    root = Path(path)
    if not root.is_dir():
        raise UserError(f"data.path={path}: no such folder")
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and _pictures(entry))
    beside = [file for file in root.iterdir() if _is_picture(file)]
    if folders and beside:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(
            f"data.path={path}: {len(beside)} images stand beside the class folders {names}; "
            "images in class folders alone, or in none, are allowed"
        )
    classes = {file: k for k, folder in enumerate(folders) for file in _pictures(folder)}
    files, notes = list(classes) or _pictures(root), not_read(root)
    if not files:
        hint = f"; {notes[0]}" if notes else ""
        raise UserError(f"data.path={path}: no images in it or its subfolders ({', '.join(sorted(SUFFIXES))}){hint}")
    framed = partial(decode, size=frame(size), mode=MODES[color], resize=resize)
    if on_broken == "skip":
        files, broken = _readable(files, framed)
        notes += broken
    try:
        x = framed(files)
    except Unreadable as error:
        raise UserError(f"{error}; data.on_broken=skip goes on without it") from None
    if not folders:
        return Splits(Examples(x), levels=256, notes=tuple(notes))
    y = torch.tensor([classes[file] for file in files])
    return Splits(Examples(x, y), levels=256, names=tuple(folder.name for folder in folders), notes=tuple(notes))


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if _is_picture(file))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def not_read(root: Path) -> list[str]:
    """Return a note on pictures in a folder whose kind is not read, if any."""
    found = sorted(file for file in root.rglob("*") if file.suffix.lower() in OTHERS and file.is_file())
    if not found:
        return []
    kinds = ", ".join(sorted({file.suffix.lower() for file in found}))
    return [f"{len(found)} pictures ({kinds}) are skipped: convert them to .png or .jpg to use them"]


def _readable(files: Sequence[Path], framed: Callable[..., Any]) -> tuple[list[Path], list[str]]:
    """Leave out the files that cannot be read, and report them; they are found once and remembered in the cache.

    Raises:
        UserError: none can be read.
    """

    def find() -> dict[str, Any]:
        try:
            framed(files)
        except Unreadable as error:
            return error.reasons
        return {}

    broken = remembered(("broken", *map(stamp, files)), find)
    kept = [file for file in files if str(file) not in broken]
    if not kept:
        raise Unreadable(broken)
    shown = ", ".join(f"{file} ({reason})" for file, reason in sorted(broken.items())[:SHOWN])
    more = f" and {len(broken) - SHOWN} others" if len(broken) > SHOWN else ""
    line = f"{len(broken)} of {len(files)} pictures cannot be read and are skipped: {shown}{more}"
    return kept, [line] if broken else []
