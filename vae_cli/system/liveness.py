"""Signs of life between ranks, while the main thread waits inside torch and Python gets no signals. No torch.

Each rank gives a sign of life every second, from a thread of its own: one that computes gives it as well, one that is
stopped or out of reach does not.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
from contextlib import suppress
from typing import Any, NoReturn

from vae_cli.system import ranks
from vae_cli.system.interruption import RESUMABLE, SIGNALS

BEAT = 1.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without one after which a rank counts as lost
DOUBT = 5.0  # seconds without one after which a signal no longer waits for that rank
STUCK = 2.0  # seconds in one call of C after which the main thread is taken to wait


class Watch:
    """Two threads: one sends signs of life and counts those of others, one receives signals.

    Attributes:
        quiet: for each other rank, for how many of our beats it has given no sign of life; empty before the ranks met.
    """

    def __init__(self) -> None:
        self.quiet: dict[int, int] = {}
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)
        signal.set_wakeup_fd(self._mouth, warn_on_full_buffer=False)
        self._start(self._listen)

    def meet(self, store: Any) -> None:
        """Start sending signs of life, and expect those of other ranks under the keys of a store."""
        self.quiet = {rank: 0 for rank in range(ranks.count()) if rank != ranks.rank()}
        self._start(self._beat, store)

    def end(self) -> None:
        """Stop sending signs of life, and expect none."""
        self._over.set()
        signal.set_wakeup_fd(-1)
        os.write(self._mouth, b"\0")
        for thread in self._threads:
            thread.join(DOUBT)  # one that waits for a stopped machine does so for longer
        os.close(self._ear)
        os.close(self._mouth)

    def _start(self, target: Any, *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _beat(self, store: Any) -> None:
        """Count beats, not seconds: if the whole machine slept, no rank was silent."""
        before: dict[int, bytes | None] = dict.fromkeys(self.quiet)
        beats = 0
        with suppress(RuntimeError):  # the store has ended, and with it the run
            while not self._over.wait(BEAT):
                store.set(f"beat/{ranks.rank()}", str(beats := beats + 1))
                for rank, last in before.items():
                    key = f"beat/{rank}"
                    before[rank] = store.get(key) if store.check([key]) else None
                    self.quiet[rank] = self.quiet[rank] + 1 if before[rank] == last else 0
                if silent := self._silent(SILENCE):
                    _leave(f"error: {_told(silent, SILENCE)}", 1)

    def _silent(self, seconds: float) -> list[int]:
        return [rank for rank, beats in self.quiet.items() if beats * BEAT >= seconds]

    def _listen(self) -> None:
        """End the process where a signal came and the main thread waits for a rank that may never answer."""
        asked: list[int] = []
        place, since = _place(), 0.0
        while not self._over.is_set():
            if select.select([self._ear], [], [], BEAT)[0]:
                asked += [number for number in os.read(self._ear, 64) if number in SIGNALS]
            else:
                since += BEAT
            if (now := _place()) != place:
                place, since = now, 0.0
            if asked and since >= STUCK:
                self._honour(asked)

    def _honour(self, asked: list[int]) -> None:
        silent = self._silent(DOUBT)
        code = 130 if signal.SIGINT in asked and not self.quiet else RESUMABLE
        if not self.quiet:
            _leave("interrupted while it waited for the other ranks to begin", code)
        if silent:
            _leave(f"interrupted: {_told(silent, DOUBT)}", code)
        if asked.count(signal.SIGINT) > 1:
            _leave("interrupted while it waited for the other ranks; the last checkpoint is kept", 130)


def _told(silent: list[int], seconds: float) -> str:
    who = f"rank {silent[0]} has" if len(silent) == 1 else f"ranks {', '.join(map(str, silent))} have"
    return (
        f"{who} given no sign of life for {seconds:g} s: stopped, or on a machine out of reach; "
        "the last checkpoint is kept"
    )


def _place() -> tuple[int, int]:
    """Return where the main thread is in its code: the same while it is in one call of C."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return (id(frame), frame.f_lasti) if frame is not None else (0, 0)


def _leave(line: str, code: int) -> NoReturn:
    """End the process from another thread than the main one, which cannot be interrupted where it is."""
    who = f"rank {ranks.rank()}: " if ranks.rank() > 0 else ""
    os.write(2, f"vae-train: {who}{line}\n".encode())
    os._exit(code)
