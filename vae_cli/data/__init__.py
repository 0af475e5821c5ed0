"""Where examples come from, how they are split, and how they become batches on the device.

A source is a function of keyword arguments that returns `Splits`; `load` turns it into a `Dataset`.
"""

from vae_cli.data.batches.resident import Resident
from vae_cli.data.dataset import Dataset, load
from vae_cli.data.examples import Examples, Splits
from vae_cli.data.spec import Spec

__all__ = ["Dataset", "Examples", "Resident", "Spec", "Splits", "load"]
