"""TensorBoard's event file, written by the caller: an error reaches the caller, not a background thread."""

from __future__ import annotations

import os
import socket
import time
from itertools import count
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

PREFIX = "events.out.tfevents."
_NUMBER = count()


class Events:
    """Writes one event file; none after an error, since a torn record would hide all that follow.

    Args:
        folder: of the file.
        purge_step: the step from which events of earlier files there are void.
    """

    def __init__(self, folder: Path, purge_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.records: RecordWriter | None = RecordWriter((folder / _name(folder)).open("xb"))
        self.add_event(Event(step=purge_step, file_version="brain.Event:2"))
        self.add_event(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)), purge_step)

    def get_logdir(self) -> str:
        """Return the folder; torch's SummaryWriter asks for it."""
        return str(self.folder)

    def add_summary(self, summary: Summary, step: int, *_: Any) -> None:
        """Write a summary."""
        self.add_event(Event(summary=summary), step)

    def add_event(self, event: Event, step: int | None = None, *_: Any) -> None:
        """Write an event as of now."""
        event.wall_time = time.time()
        if step is not None:
            event.step = int(step)
        self._attempt(lambda records: records.write(event.SerializeToString()))
        self.flush()  # to the system, which keeps it when this process is killed

    def flush(self) -> None:
        """Flush what was written to the system."""
        self._attempt(lambda records: records.flush())

    def close(self) -> None:
        """Write what is left."""
        self._attempt(lambda records: records.close())
        self.records = None

    def _attempt(self, write: Any) -> None:
        if self.records is None:
            return
        try:
            write(self.records)
        except OSError:
            self.records = None
            raise


class Writer(SummaryWriter):
    """torch's SummaryWriter on such a file."""

    def __init__(self, folder: Path, *, purge_step: int):
        self.events = Events(folder, purge_step)
        super().__init__(str(folder))

    def _get_file_writer(self) -> Events:
        self.file_writer = self.events  # type: ignore[assignment]
        self.all_writers = {str(self.events.folder): self.events}  # type: ignore[assignment]
        return self.events


def _name(folder: Path) -> str:
    """Return a name that sorts after those in the folder: TensorBoard reads files in that order.

    The seconds since 1970 in it do so by themselves until a clock is set back, or two files begin within one second.
    """
    stamps = [path.name.removeprefix(PREFIX).split(".")[0] for path in folder.glob(f"{PREFIX}[0-9]*")]
    earlier = [int(each) for each in stamps if each.isdecimal() and len(each) == 10]
    stamp = max([int(time.time()), *(each + 1 for each in earlier)])
    return f"{PREFIX}{stamp:010d}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBER)}"
