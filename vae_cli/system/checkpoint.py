"""State to disk and back, atomically and with a checksum.

Nothing but tensors and plain containers: `weights_only=True` reads it all.
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from vae_cli.system.disk import Unwritable, whole
from vae_cli.system.errors import UserError, first_line
from vae_cli.system.machine import is_out_of_memory

FORMAT = 3
MISFITS = (RuntimeError, LookupError, TypeError, AttributeError, ValueError, OverflowError)
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
ZIP = b"PK\x03\x04"  # how an archive begins
BUILT = re.compile(r"collections OrderedDict|torch\._utils _rebuild_tensor_v2|torch \w+Storage")  # beside plain values
SLACK = 10_000  # values that a file may hold beyond its bytes
MOST = 2**48  # of whatever a state counts


def save(state: dict[str, Any], path: Path, keep: Path | None = None) -> None:
    """Write a state to a temporary file beside `path`, flush it to disk, and rename it: whole, or not at all.

    Args:
        state: tensors and plain containers.
        path: of the checkpoint.
        keep: where the checkpoint that is at `path` now is kept; at no moment is neither of them there.

    Raises:
        Unwritable: the file cannot be written.
    """
    try:
        path.parent.mkdir(exist_ok=True)  # its own folder alone: a run's that was deleted does not come back
        with whole(path) as partial:
            with partial.open("wb") as file:
                torch.save({"format": FORMAT, "digest": digest(state), **state}, file)
                file.flush()
                os.fsync(file.fileno())
            if keep is not None and path.is_file():
                _link(path, keep)
        _flush_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's hides the disk's own, in whose wake it comes
        disk = error if isinstance(error, OSError) else error.__context__
        why = disk.strerror if isinstance(disk, OSError) and disk.strerror else first_line(error)
        raise Unwritable(f"{path}: cannot be written ({why})") from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a state that `save` wrote; executes nothing that the file might hold.

    Raises:
        UserError: there is no such file, or it is no whole checkpoint of this format.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _refuse_to_inflate(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
            _refuse_more_than_the_file_holds(state, path.stat().st_size)
        same_format = isinstance(state, dict) and str(state.pop("format", None)) == str(FORMAT)
        undamaged = same_format and str(state.pop("digest", None)) == digest(state)
    except Exception as error:  # damaged bytes fail in as many ways as there are readers
        raise UserError(f"{path}: not a whole checkpoint (damaged, cut short or something else)") from error
    if not same_format:
        raise UserError(f"{path}: not a checkpoint of format {FORMAT}")
    if not undamaged:
        raise UserError(f"{path}: damaged (its checksum does not fit what it holds)")
    return move(state, torch.device(device))


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Within the block a state is put to use; say in one line that it does not fit the run.

    Raises:
        UserError: it does not.
    """
    try:
        yield
    except MISFITS as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"{path}: does not fit the run's settings ({type(error).__name__}: {first_line(error)})"
        ) from error


def load_last(folder: Path, device: torch.device | str, tell: Callable[[str], None]) -> dict[str, Any]:
    """Read the newest whole one of the last two checkpoints of a folder, and tell of one that is damaged.

    Raises:
        UserError: there is none.
    """
    try:
        return load(folder / LAST, device)
    except UserError as error:
        if not (folder / PREVIOUS).is_file():
            raise
        state = load(folder / PREVIOUS, device)
        tell(f"{error}; the one before it is used, of step {state['step']}")
        return state


def digest(value: Any) -> str:
    """Return the SHA-256 of tensors and plain containers: of their types, shapes and bytes."""
    found = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(f"{value.dtype}{list(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        elif isinstance(value, dict):
            found.update(f"dict{len(value)}".encode())
            for key, each in value.items():
                add(key)
                add(each)
        elif isinstance(value, (list, tuple)):
            found.update(f"list{len(value)}".encode())
            for each in value:
                add(each)
        else:
            found.update(repr(value).encode() + b";")

    add(value)
    return found.hexdigest()


def count_in(state: dict[str, Any], key: str) -> int:
    """Return a count that a state holds: its step, say.

    Raises:
        TypeError: it is none.
    """
    count = state[key]
    if type(count) is not int or not 0 <= count < MOST:
        raise TypeError(f"its {key} is no count")
    return count


def _refuse_to_inflate(path: Path) -> None:
    """Refuse a file that is not as `save` writes it, before anything of it is read: stored bytes of known kinds.

    Raises:
        ValueError: it is compressed, its records overlap, or it would build something else than tensors and containers.
    """
    with path.open("rb") as file:
        if file.read(len(ZIP)) != ZIP:
            raise ValueError("no archive")
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
            if packed or sum(record.file_size for record in records) > path.stat().st_size:
                raise ValueError("records larger than the file")
            (pickled,) = (record for record in records if record.filename.endswith("/data.pkl"))
            for code, argument, _ in pickletools.genops(archive.read(pickled)):
                if code.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not BUILT.fullmatch(str(argument)):
                    raise ValueError(f"{argument} is neither a tensor nor a container")


def _refuse_more_than_the_file_holds(state: Any, size: int) -> None:
    """Refuse tensors with more bytes than their file of so many, and containers that share their parts without end.

    Raises:
        ValueError: there are such.
    """
    left, memory, within = size + SLACK, {}, [state]
    while within:
        value = within.pop()
        left -= 1
        if isinstance(value, torch.Tensor):
            _refuse_more_than_is_there(value)
            memory[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (dict, list, tuple)):
            left -= len(value)
            within += [*value, *value.values()] if isinstance(value, dict) else value
        if left < 0 or sum(memory.values()) > size:
            raise ValueError("more than its file holds")


def _refuse_more_than_is_there(value: torch.Tensor) -> None:
    """Refuse a tensor that would take more memory than it has."""
    if value.layout is not torch.strided or value.device.type == "meta":
        raise ValueError("a tensor without its numbers")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise ValueError("a tensor larger than its memory")


def move(value: Any, device: torch.device) -> Any:
    """Return containers whose tensors are on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: move(each, device) for key, each in value.items()}
    return type(value)(move(each, device) for each in value) if isinstance(value, (list, tuple)) else value


def _link(path: Path, other: Path) -> None:
    """Let another name stand for a file as well; where the file system knows no links, rename it."""
    beside = other.with_name(other.name + ".partial")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:
        path.replace(beside)
    beside.replace(other)


def _flush_folder(folder: Path) -> None:
    """Make a renaming last, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    number = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
