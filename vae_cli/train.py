"""`python -m vae_cli.train` is `vae-train`: what torchrun starts."""

from vae_cli.commands.train import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
