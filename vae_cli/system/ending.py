"""How a command ends that has not begun its work. Imports next to nothing."""

import os
import sys


def end_at_once(*_: object) -> None:
    """End the process with one line: the handler of Ctrl-C until a command has begun its work."""
    os.write(2, os.fsencode(os.path.basename(sys.argv[0])) + b": interrupted\n")
    os._exit(130)
