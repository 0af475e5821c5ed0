"""Commands in processes of their own, forked from a server that has torch imported already.

They are real processes, with exit codes, signals, limits and a death of their own; what they lack is the seconds that
importing torch takes. What tests start-up itself uses `subprocess`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.warm"])


class Command:
    """A command that runs; use it in a `with` block, whose end is the command's.

    Args:
        arguments: of the command line.
        module: whose `main` is called.
        cwd: its working folder.
        before: called in the new process first, with no argument: sets limits, changes its user or breaks things.
        environment: in place of this process's.
    """

    def __init__(
        self,
        *arguments: object,
        module: str = "vae_cli.commands.train",
        cwd: Path = ROOT,
        before: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ):
        self.arguments = [module, *map(str, arguments)]
        self.folder = tempfile.TemporaryDirectory()
        streams = [Path(self.folder.name, name) for name in ("stdout", "stderr")]
        self.stdout, self.stderr = streams
        for stream in streams:
            stream.touch()
        environment = dict(os.environ if environment is None else environment)
        self.process = SERVER.Process(target=_run, args=(self.arguments, str(cwd), before, environment, streams))
        self.process.start()

    def __enter__(self) -> Command:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.folder.cleanup()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    def signal(self, name: str) -> None:
        """Send a signal by its name."""
        assert self.process.pid is not None
        os.kill(self.process.pid, getattr(signal, name))

    def done(self, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Wait for its end and return what it said."""
        self.process.join(timeout)
        if self.running:
            raise subprocess.TimeoutExpired(self.arguments, timeout, self.stdout.read_text(), self.stderr.read_text())
        code = self.process.exitcode
        assert code is not None
        return subprocess.CompletedProcess(self.arguments, code, self.stdout.read_text(), self.stderr.read_text())


def command(*arguments: object, timeout: float = 300.0, **named: object) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; see `Command`."""
    with Command(*arguments, **named) as started:  # type: ignore[arg-type]
        return started.done(timeout)


@contextmanager
def started(*arguments: object, environment: Mapping[str, str] | None = None, **named: Any) -> Iterator[Any]:
    """Start Python in a session of its own; the end of the block is its end and that of all that it started.

    These may have sessions of their own, as torchrun's ranks have, or have lost their parent: what they all inherit
    tells them.

    Args:
        arguments: of Python.
        environment: in place of this process's.
        named: of `subprocess.Popen`; by default both streams are pipes.
    """
    mark = str(uuid.uuid4())
    environment = {**(os.environ if environment is None else environment), "STARTED_BY_TEST": mark}
    named = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, "text": True, **named}
    launched = [sys.executable, *map(str, arguments)]
    with subprocess.Popen(launched, env=environment, start_new_session=True, **named) as process:
        try:
            yield process
        finally:
            _kill_all(mark.encode())


def _kill_all(mark: bytes) -> None:
    """Kill every process that has a mark in its environment, until there is none."""
    while found := [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if mark in _content(path)]:
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.01)


def _content(path: Path) -> bytes:
    """Return what is in a file; nothing, where it has gone or is another user's."""
    with suppress(OSError):
        return path.read_bytes()
    return b""


def fresh(*arguments: object, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run vae-train in a process that nothing was done in yet: launchers of many processes need one."""
    with started("-m", "vae_cli.commands.train", *arguments) as process:
        said = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, *said)


def wait_for(condition: Callable[[], object], seconds: float = 120.0, *, must: bool = True) -> None:
    """Wait until a condition holds, for so long at most; assert that it does in the end, unless it need not."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.01)
    assert holds or not must, f"not so within {seconds:g} s"


def logged(folder: Path) -> bool:
    """Whether a run has written its first metrics, and trains."""
    path = folder / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def _run(
    arguments: list[str],
    cwd: str,
    before: Callable[[], object] | None,
    environment: dict[str, str],
    streams: list[Path],
) -> None:
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # the server's own, which the environment may contradict
    os.chdir(cwd)
    sys.argv = list(arguments)
    if before is not None:
        before()
    importlib.import_module(arguments[0]).main()
