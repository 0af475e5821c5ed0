"""Signals that ask a run to stop: it finishes its step, saves, and says how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from vae_cli.system.ending import end_at_once

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
RESUMABLE = 75  # the exit code of a run that was interrupted and can go on: EX_TEMPFAIL, "try again"


class Interrupted(KeyboardInterrupt):
    """Training stopped on request, and is saved."""


def begin() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, so that work can be cleaned up."""
    _replace(end_at_once, signal.default_int_handler)


def heed() -> None:
    """From here on signals that would end the process silently interrupt it: while data load, after training."""
    _replace(signal.SIG_DFL, _interrupt)


def heed_no_more() -> None:
    """Let such signals end the process silently again."""
    _replace(_interrupt, signal.SIG_DFL)


def ending() -> None:
    """Ignore signals from here on: the process ends with the exit code that it has.

    Raised while Python ends, an interruption would be printed as a traceback. Ctrl-C still stops at once, in silence,
    and so does a second one of the other signals.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _replace(_interrupt, _pass_over)


@contextmanager
def deferred() -> Iterator[None]:
    """Delay signals until the end of the block: C code that imports Python would lose them."""
    with Interruption() as interruption:
        yield
    interruption.honour(interruption.requests[:])


def _interrupt(*_: object) -> None:
    raise Interrupted


def _pass_over(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)


def _replace(old: Any, new: Any) -> None:
    for each in SIGNALS:
        if signal.getsignal(each) is old:
            signal.signal(each, new)


class Interruption:
    """Within the block, a signal is a stop request: the loop honours it after its step, once all is saved.

    A second Ctrl-C interrupts at once; schedulers that repeat SIGTERM or SIGUSR1 do not.

    Attributes:
        requests: the signals that came and were not honoured yet.
    """

    def __init__(self) -> None:
        self.requests: list[signal.Signals] = []
        self.before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self.before = {each: signal.signal(each, self._ask) for each in SIGNALS}
        return self

    def _ask(self, number: int, _: object) -> None:
        if self.requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requests.append(signal.Signals(number))

    def honour(self, requests: Iterable[signal.Signals]) -> None:
        """Stop; or do what a launcher that waits for the signal would: submitit requeues its job, or lets it go on.

        Args:
            requests: signals that came to this process, or to another rank.

        Raises:
            Interrupted: nobody waits for one of them.
        """
        for request in requests:
            while request in self.requests:
                self.requests.remove(request)
            handler = self.before.get(request)
            if not callable(handler) or handler is signal.default_int_handler:
                raise Interrupted(request.name)
            handler(request, None)

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)
