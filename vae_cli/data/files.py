"""A user's own files: arrays and pictures."""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vae_cli.data.cache import cached, stamp
from vae_cli.data.examples import Examples, Splits
from vae_cli.data.mapped import CHUNK, SMALL, Mapped
from vae_cli.errors import UserError, first_line
from vae_cli.machine import free_memory, usable_threads

FEW = 200  # pictures that are decoded sooner than looked up
MODES = {"rgb": "RGB", "grayscale": "L"}  # what PIL calls colours
GREY = ("1", "L", "I;16")  # how PIL calls pictures without colours
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # that PIL reads; for others it starts programs
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def arrays(*, path: str, labels: str | None = None) -> Splits:
    """Return the examples of an .npz (`x`, `y`) or .npy, with the labels of another .npy: [N, *shape].

    A large .npy is read in place, a batch at a time. Bytes stay bytes (256 levels, or 2 where no value exceeds 1);
    other integers 0 … 255 become as many levels as their largest value needs; anything else becomes float32. Channels
    may come last. Labels are classes (integers) or attribute vectors (two dimensions).
    """
    x, y = read("data.path", Path(path))
    if labels is not None:
        if y is not None:
            raise UserError(f"data.labels={labels}: has no effect, {path} holds labels `y`; null is allowed")
        y, _ = read("data.labels", Path(labels))
    x = channels_first(f"data.path={path}", x, y)
    examples, levels = (_in_place if isinstance(x, np.memmap) else _levels)(path, x)
    found, names = (None, None) if y is None else named(f"data.path={path}", y)
    return Splits(Examples(examples, found), levels=levels, names=names)


def read(key: str, path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Return `x` and `y` of a file; a large .npy as the memory map that it is."""
    content = contents(key, path, "x")
    if "x" not in content and len(content) != 1:
        raise UserError(f"{key}={path}: holds {', '.join(content) or 'nothing'}; examples must be under `x`")
    x, y = content["x"] if "x" in content else next(iter(content.values())), content.get("y")
    if not all(isinstance(part, np.ndarray) for part in (x, y) if part is not None):
        raise UserError(f"{key}={path}: `x` or `y` in it is no array; arrays saved by numpy are allowed")
    return x, y


def contents(key: str, path: Path, name: str) -> dict[str, Any]:
    """Return the arrays of an .npz, or that of an .npy under a name: a large one as the memory map that it is.

    Raises:
        UserError: there is none, it is damaged, or it would not fit into memory; the line begins with the key.
    """
    if not path.is_file():
        raise UserError(f"{key}={path}: no such file; an .npz or .npy file is allowed")
    with path.open("rb") as file:
        if not file.read(6).startswith((b"PK", b"\x93NUMPY")):
            raise UserError(f"{key}={path}: no NumPy file; an .npz or .npy (numpy.savez, numpy.save) is allowed")
        file.seek(0)
        try:
            if path.stat().st_size > SMALL and not zipfile.is_zipfile(file):
                return {name: np.load(path, mmap_mode="c", allow_pickle=False)}
            file.seek(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # old headers are read all the same
                _refuse_a_flood(key, path, file)
                loaded: Any = np.load(file, allow_pickle=False)
                return dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {name: loaded}
        except UserError:
            raise
        except Exception as error:
            reason = f"damaged or cut short: {first_line(error)}"
            if "pickle" in str(error):
                reason = "it holds Python objects, which are never unpickled; save numbers or strings, y.astype(str)"
            raise UserError(f"{key}={path}: cannot be read ({reason})") from None


def _refuse_a_flood(key: str, path: Path, file: BinaryIO) -> None:
    """Refuse arrays that would not fit into memory, by what their headers claim, before anything is inflated."""
    claimed = 0
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                with archive.open(member) as inner:
                    claimed += max(member.file_size, _claimed(inner))
    else:
        file.seek(0)
        claimed = _claimed(file)
    file.seek(0)
    free = free_memory()
    if claimed > free:
        raise UserError(
            f"{key}={path}: its arrays need {claimed / 2**30:.1f} GiB; {free / 2**30:.1f} GiB are free; "
            "a single array saved as .npy (numpy.save) is read in place"
        )


def _claimed(file: Any) -> int:
    """Return the bytes that an array's header claims, 0 where there is no header."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError:
        return 0
    return math.prod(shape) * dtype.itemsize


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def channels_first(given: str, x: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    """[N, H, W, C] → [N, C, H, W], told by the axis that could be channels.

    Raises:
        UserError: there are no examples, or more or fewer labels than examples.
    """
    if x.ndim < 2 or 0 in x.shape:
        raise UserError(f"{given}: examples of shape {_shown(x.shape)}; [N, …] with N ≥ 1 and one axis more is allowed")
    if y is not None and y.shape[:1] != x.shape[:1]:
        count = len(y) if y.ndim else 0
        raise UserError(f"{given}: {len(x)} examples in `x` but {count} labels in `y`; the counts must be equal")
    few = (1, 3, 4)
    return np.moveaxis(x, -1, 1) if x.ndim == 4 and x.shape[-1] in few and x.shape[1] not in few else x


def _levels(path: str, x: np.ndarray) -> tuple[Tensor, int | None]:
    if x.dtype.kind == "b":
        return torch.from_numpy(np.ascontiguousarray(x)).to(torch.uint8), 2
    if x.dtype.kind in "ui" and x.min() >= 0 and x.max() <= 255:
        levels = 2 if x.max() <= 1 else 256 if x.dtype == np.uint8 else int(x.max()) + 1
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.uint8)), levels
    if x.dtype.kind not in "uif":
        raise UserError(f"data.path={path}: examples of type {x.dtype}; numbers are allowed")
    _refuse_coarse(path, x)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(x, dtype=np.float32)
    if not np.isfinite(values).all():
        _refuse_infinite(path, values, 0)
    if ((values == 0) | (values == 1)).all():
        return torch.from_numpy(values.astype(np.uint8)), 2
    return torch.from_numpy(values), None


def _refuse_coarse(path: str, x: np.ndarray) -> None:
    """Refuse numbers that vary by less about their mean than float32 tells apart: times since 1970, say."""
    if x.dtype.itemsize <= 4 or len(x) < 2 or not np.isfinite(x).all():
        return
    with np.errstate(over="ignore", invalid="ignore"):
        size, spread = np.abs(x).max(0).astype(np.float64).ravel(), x.std(0, dtype=np.float64).ravel()
    coarse = (spread > 1e-12 * size) & (2.0**-24 * size > 0.01 * spread)
    if coarse.any():
        k = int(coarse.argmax())
        raise UserError(
            f"data.path={path}: element {k} of `x` varies by {spread[k]:.3g} where it comes to {size[k]:.10g}, "
            "less than float32 tells apart; subtract its mean"
        )


def _in_place(path: str, x: np.ndarray) -> tuple[Mapped, int | None]:
    """As `_levels`, without reading more of the file than tells what it holds, and no more than a part at a time."""
    x = np.asarray(x)
    if x.dtype.kind == "b":
        return Mapped(x, torch.uint8, (0.0, 1.0)), 2
    if x.dtype.kind not in "uif":
        raise UserError(f"data.path={path}: examples of type {x.dtype}; numbers are allowed")
    low, high, binary = _range(path, x)
    if x.dtype.kind in "ui" and low >= 0 and high <= 255:
        levels = 2 if high <= 1 else 256 if x.dtype == np.uint8 else int(high) + 1
        return Mapped(x, torch.uint8, (low, high)), levels
    return Mapped(x, torch.uint8 if binary else torch.float32, (low, high)), 2 if binary else None


def _range(path: str, x: np.ndarray) -> tuple[float, float, bool]:
    """Return the least and the largest value of an array in a file, and whether all are 0 or 1.

    Raises:
        UserError: not all are finite.
    """
    low, high, binary = math.inf, -math.inf, True
    many = max(1, CHUNK // (x[0].size * 4))
    for start in range(0, len(x), many):
        part = x[start : start + many]
        with np.errstate(over="ignore"):
            part = part.astype(np.float32, copy=False) if x.dtype.kind == "f" else part
        least, largest = float(part.min()), float(part.max())
        if not math.isfinite(least + largest):
            _refuse_infinite(path, part, start)
        low, high = min(low, least), max(high, largest)
        binary = binary and low >= 0 and high <= 1 and bool(((part == 0) | (part == 1)).all())
        if x.dtype == np.uint8 and high > 1:
            return 0.0, 255.0, False  # grey levels: the rest tells nothing
    return low, high, binary


def _refuse_infinite(path: str, values: np.ndarray, first: int) -> None:
    bad = first + int((~np.isfinite(values)).reshape(len(values), -1).any(1).argmax())
    raise UserError(
        f"data.path={path}: NaN, infinity or beyond float32 in `x` (first in example {bad}); finite numbers are allowed"
    )


def named(given: str, y: np.ndarray) -> tuple[Tensor, tuple[str, ...] | None]:
    """Return labels and the names of their classes, in sorted order; attributes have none."""
    if y.dtype.kind == "f" and y.ndim == 1 and (np.abs(y) < 2**53).all() and (y == np.round(y)).all():
        y = y.astype(np.int64)
    if y.dtype.kind in "uibUS" and y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 1 and y.dtype.kind in "uibUS":
        names, y = np.unique(y, return_inverse=True)
        return torch.from_numpy(y).long(), tuple(map(str, names))
    if y.ndim == 2 and y.dtype.kind in "uifb" and np.isfinite(y.astype(np.float32)).all():
        return torch.from_numpy(y.astype(np.float32)), None
    raise UserError(
        f"{given}: labels `y` of shape {_shown(y.shape)} and type {y.dtype}; "
        "classes [N] (whole numbers or names) or finite attributes [N, A] are allowed"
    )


def images(*, path: str, size: int | list[int], color: str) -> Splits:
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
    files = [file for folder in folders for file in _pictures(folder)] or _pictures(root)
    if not files:
        raise UserError(f"data.path={path}: no images in it or its subfolders ({', '.join(sorted(SUFFIXES))})")
    x = decode(files, frame(size), MODES[color])
    if not folders:
        return Splits(Examples(x), levels=256)
    y = torch.cat([torch.full((len(_pictures(folder)),), k) for k, folder in enumerate(folders)])
    return Splits(Examples(x, y), levels=256, names=tuple(folder.name for folder in folders))


def frame(size: int | list[int]) -> tuple[int, int]:
    """Return height and width from a setting that gives both, or one for the two."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if _is_picture(file))


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def decode(files: Sequence[Path], size: tuple[int, int], mode: str, crop: int | None = None) -> Tensor | Mapped:
    """Return pictures [N, C, H, W] bytes, cut and scaled to the frame; many are decoded once and then cached."""
    shape = (len(files), len(mode), *size)

    def fill(x: Tensor) -> None:
        """Decode in parallel threads."""

        def work(i: int) -> None:
            x[i] = _decode_one(files[i], size, mode, crop)

        in_threads(work, range(len(files)))

    if len(files) > FEW:
        return cached((*map(stamp, files), size, mode, crop), shape, fill)
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


def _decode_one(file: Path, size: tuple[int, int], mode: str, crop: int | None) -> Tensor:
    try:
        return picture(file, size, mode, crop)
    except Exception as error:
        raise UserError(f"data.path: {file} cannot be read as an image ({first_line(error)})") from None


def open_picture(file: Path | str | BinaryIO) -> Any:
    """Open a picture of one of the FORMATS by what is in it, whatever its name says: PostScript is a program."""
    from PIL import Image

    return Image.open(file, formats=FORMATS)


def picture(file: Path | BinaryIO | Any, size: tuple[int, int] | None, mode: str, crop: int | None = None) -> Tensor:
    """Return a picture [C, H, W] bytes, cut and scaled to a frame (None: as it is); whatever PIL raises goes through.

    Args:
        file: to read, or an opened picture of PIL's.
        size: height and width of the frame.
        mode: RGB or L.
        crop: pixels a side that are cut from the centre before.
    """
    from PIL import Image, ImageOps

    with file if isinstance(file, Image.Image) else open_picture(file) as opened:
        found = ImageOps.exif_transpose(_eight_bits(opened)).convert(mode)
    if crop is not None:
        left, top = (found.width - crop) // 2, (found.height - crop) // 2
        found = found.crop((left, top, left + crop, top + crop))
    if size is not None and size != (found.height, found.width):
        found = ImageOps.fit(found, (size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(found)).view(found.height, found.width, len(mode)).permute(2, 0, 1)
