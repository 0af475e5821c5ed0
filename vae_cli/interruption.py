"""Signals that ask a run to stop: it finishes its step, saves, and says how to go on."""

from __future__ import annotations

import signal
import threading
from typing import Any

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
RESUMABLE = 75  # the exit code of a run that was interrupted and can go on: EX_TEMPFAIL, "try again"


class Interrupted(KeyboardInterrupt):
    """Training stopped on request, and is saved."""


def ending() -> None:
    """From here on a signal interrupts nothing: the process ends, and ends with the exit code it has.

    Raised while Python ends, an interruption would be printed as a traceback. Ctrl-C still stops at once, in silence.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if callable(signal.getsignal(signal.SIGTERM)):
        signal.signal(signal.SIGTERM, lambda *_: None)


class Interruption:
    """Within the block, the first signal becomes a wish that the loop grants after its step, once all is saved.

    A second Ctrl-C interrupts at once; schedulers that repeat SIGTERM or SIGUSR1 do not.
    """

    def __init__(self) -> None:
        self.asked: list[signal.Signals] = []
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self.before = {each: signal.signal(each, self._ask) for each in SIGNALS}
        return self

    def _ask(self, number: int, _: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked.append(signal.Signals(number))

    def grant(self) -> None:
        """Stop; or do what a launcher that waits for the signal would: submitit requeues its job, or lets it go on.

        Raises:
            Interrupted: nobody waits for the signal, or another rank was asked.
        """
        if not self.asked:
            raise Interrupted
        while self.asked:
            asked = self.asked.pop(0)
            handler = self.before[asked]
            if not callable(handler) or handler is signal.default_int_handler:
                raise Interrupted(asked.name)
            handler(asked, None)

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)
