"""`python -m vae_cli.train` is `vae-train`: what torchrun starts."""

import sys
from types import ModuleType
from typing import Any

from vae_cli.commands.train import main

__all__ = ["main"]


class _AlsoFunction(ModuleType):
    """The function `vae_cli.train` has the name of this module: once imported, the module is called in its place."""

    def __call__(self, *overrides: str, **settings: Any) -> Any:
        from vae_cli.commands.notebook import train

        return train(*overrides, **settings)


sys.modules[__name__].__class__ = _AlsoFunction

if __name__ == "__main__":
    main()
