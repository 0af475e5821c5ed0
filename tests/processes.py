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
from collections.abc import Callable, Mapping
from pathlib import Path

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
        module: str = "vae_cli.train",
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


def fresh(*arguments: object, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run vae-train in a process that nothing was done in yet: launchers of many processes need one."""
    command = [sys.executable, "-m", "vae_cli.train", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until a condition holds, or for so long."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)


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
