"""Where the commands begin. Until one has begun its work, Ctrl-C ends it at once, without a traceback.

Raised as an exception while modules are imported and settings composed, it could also be lost there, or become another.
"""

import signal
import sys
from importlib import import_module

from vae_cli.system.ending import end_at_once


def train() -> None:
    """Begin vae-train."""
    _start("vae_cli.commands.train")


def compare() -> None:
    """Begin vae-compare."""
    _start("vae_cli.commands.compare")


def data() -> None:
    """Begin vae-data."""
    _start("vae_cli.commands.pack")


def evaluate() -> None:
    """Begin vae-eval."""
    _start("vae_cli.commands.evaluate")


def export() -> None:
    """Begin vae-export."""
    _start("vae_cli.commands.export")


def generate() -> None:
    """Begin vae-generate."""
    _start("vae_cli.commands.generate.app")


def _start(module: str) -> None:
    """Import a command, and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be passed over, as by nohup
        signal.signal(signal.SIGINT, end_at_once)
    sys.exit(import_module(module).main())
