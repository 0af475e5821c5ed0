"""vae-cli: train, compare and trust variational autoencoders from the command line, and use them from Python.

`vae_cli.load(RUN)` gives a trained model, `vae_cli.load_data(RUN, SPLIT)` its data, `vae_cli.Trained` is what `load`
returns; these names are public. torch is imported when they are first used.
"""

TYPE_CHECKING = False  # as mypy knows it; typing is not imported, so that a command begins at once
if TYPE_CHECKING:
    from vae_cli.api import Trained, load, load_data

__version__ = "0.1.0"
__all__ = ["Trained", "load", "load_data"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'vae_cli' has no attribute {name!r}")
    from vae_cli import api

    return getattr(api, name)
