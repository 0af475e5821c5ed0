"""vae-cli: train, compare and trust variational autoencoders from the command line."""

__version__ = "0.1.0"
