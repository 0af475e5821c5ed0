"""The examples in the docstrings of the parts: each runs, and every public part has one."""

import doctest
import importlib
from pathlib import Path

import pytest

from vae_cli.config.options import GROUPS, targets
from vae_cli.config.types import Part
from vae_cli.parts import find

GROUPS_OF_CLASSES = [group for group in GROUPS if group != "data"]
FOLDERS = ("model", "latent", "likelihood", "prior", "posterior", "objective")
SINGLE = ("vae", "kl", "lr_schedule", "conditional", "optimizer")
PACKAGE = Path(importlib.import_module("vae_cli").__file__).parent
MODULES = [
    f"vae_cli.{folder}.{path.stem}" for folder in FOLDERS for path in sorted((PACKAGE / folder).glob("[!_]*.py"))
]
MODULES += [f"vae_cli.{name}" for name in SINGLE]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("group", GROUPS_OF_CLASSES)
def test_every_option_has_an_example(group):
    for target, option in targets(group).items():
        part = find(group, Part(_target_=target))
        assert ">>> " in (part.__doc__ or ""), f"{group}={option}"
