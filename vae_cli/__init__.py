"""vae-cli: train, compare and trust variational autoencoders from the command line, and use them from Python.

`vae_cli.load(RUN)` gives a trained model, `vae_cli.load_data(RUN, SPLIT)` its data, `vae_cli.Trained` is what `load`
returns. `vae_cli.train(*OVERRIDES)` trains as vae-train does and returns the trained model; `vae_cli.history(RUN)` and
`vae_cli.runs(FOLDER)` are the numbers of one run, and of all runs in a folder, as pandas DataFrames. These names are
public. torch is imported when they are first used.
"""

TYPE_CHECKING = False  # as mypy knows it; typing is not imported, so that a command begins at once
if TYPE_CHECKING:
    from vae_cli.api import Trained, load, load_data
    from vae_cli.commands.notebook import history, runs, train

__version__ = "0.1.0"
__all__ = ["Trained", "history", "load", "load_data", "runs", "train"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'vae_cli' has no attribute {name!r}")
    from importlib import import_module

    home = "commands.notebook" if name in ("history", "runs", "train") else "api"
    return getattr(import_module(f"vae_cli.{home}"), name)
