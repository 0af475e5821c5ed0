"""Pictures from files: decoded, framed, in threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vae_cli.data.batches.cache import cached, stamp
from vae_cli.data.batches.mapped import Mapped
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.machine import usable_threads

FEW = 200  # pictures that are decoded sooner than looked up
MODES = {"rgb": "RGB", "grayscale": "L"}  # what PIL calls colours
GREY = ("1", "L", "I;16")  # how PIL calls pictures without colours
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # that PIL reads; for others it starts programs


class Unreadable(UserError):
    """Files cannot be read as images; `reasons` has each by its name."""

    def __init__(self, reasons: dict[str, str]):
        (file, reason), *others = sorted(reasons.items())
        more = f", and {len(others)} others" if others else ""
        super().__init__(f"data.path: {file} cannot be read as an image ({reason}){more}")
        self.reasons = reasons


def frame(size: int | list[int]) -> tuple[int, int]:
    """Return height and width from a setting that gives both, or one for the two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def decode(
    files: Sequence[Path], size: tuple[int, int], mode: str, crop: int | None = None, resize: str = "crop"
) -> Tensor | Mapped:
    """Return pictures [N, C, H, W] bytes, framed as `picture` does; many are decoded once and then cached.

    Raises:
        Unreadable: some cannot be read; it has all of them.
    """
    shape = (len(files), len(mode), *size)

    def fill(x: Tensor) -> None:
        """Decode in parallel threads."""
        broken: dict[str, str] = {}

        def work(i: int) -> None:
            try:
                x[i] = _decode_one(files[i], size, mode, crop, resize)
            except Unreadable as error:
                broken.update(error.reasons)

        in_threads(work, range(len(files)))
        if broken:
            raise Unreadable(broken)

    if len(files) > FEW:
        return cached((*map(stamp, files), size, mode, crop, resize), shape, fill)
    x = torch.empty(shape, dtype=torch.uint8)
    fill(x)
    return x


def in_threads(work: Callable[[int], None], numbers: range) -> None:
    """Do a piece of work for each number, on all the cores that this process may use."""
    with ThreadPoolExecutor(usable_threads()) as pool:
        for _ in pool.map(work, numbers):
            pass


def _eight_bits(picture: Any) -> Any:
    """Return a picture with 8 bits a channel: PIL's own conversion would cut 16-bit grey levels at 255."""
    from PIL import Image

    if picture.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of type {picture.mode}; 8 or 16 bits a channel are allowed")
    return picture


def _decode_one(file: Path, size: tuple[int, int], mode: str, crop: int | None, resize: str) -> Tensor:
    try:
        return picture(file, size, mode, crop, resize)
    except Exception as error:
        raise Unreadable({str(file): first_line(error)}) from None


def open_picture(file: Path | str | BinaryIO) -> Any:
    """Open a picture of one of the FORMATS by what is in it, whatever its name says: PostScript is a program."""
    from PIL import Image

    return Image.open(file, formats=FORMATS)


def picture(
    file: Path | BinaryIO | Any,
    size: tuple[int, int] | None,
    mode: str,
    crop: int | None = None,
    resize: str = "crop",
) -> Tensor:
    """Return a picture [C, H, W] bytes at the size of a frame (None: as it is); whatever PIL raises goes through.

    Args:
        file: to read, or an opened picture of PIL's.
        size: height and width of the frame.
        mode: RGB or L.
        crop: pixels a side that are cut from the centre before.
        resize: how it fills the frame: crop (cut at the centre), pad (black borders) or stretch (distorted).
    """
    from PIL import Image, ImageOps

    with file if isinstance(file, Image.Image) else open_picture(file) as opened:
        found = ImageOps.exif_transpose(_eight_bits(opened)).convert(mode)
    if crop is not None:
        left, top = (found.width - crop) // 2, (found.height - crop) // 2
        found = found.crop((left, top, left + crop, top + crop))
    if size is not None and size != (found.height, found.width):
        found = _resized(found, (size[1], size[0]), resize)
    return torch.from_numpy(np.array(found)).view(found.height, found.width, len(mode)).permute(2, 0, 1)


def _resized(found: Any, size: tuple[int, int], resize: str) -> Any:
    """Return a picture of PIL's at a width and height: crop cuts off the rest, pad adds black, stretch distorts."""
    from PIL import Image, ImageOps

    if resize == "stretch":
        return found.resize(size, Image.Resampling.BILINEAR)
    return {"crop": ImageOps.fit, "pad": ImageOps.pad}[resize](found, size, Image.Resampling.BILINEAR)


def refuse_resize_alone(size: object, resize: str) -> None:
    """Refuse a way to fill a frame where there is no frame.

    Raises:
        UserError: that is so.
    """
    if size is None and resize != "crop":
        raise UserError(f"data.resize={resize}: has no effect with data.size=null; a size is needed")
