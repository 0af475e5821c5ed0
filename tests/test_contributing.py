"""The worked examples of CONTRIBUTING.md: added to a copy of the package, they are found, checked and trained with."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np

from tests.conftest import ROOT
from tests.documents import commands, files, write

STEPS = """
import json, sys
from unittest.mock import DEFAULT, patch

import vae_cli
from vae_cli.config import compose
from vae_cli.report import Reporter
from vae_cli.system.errors import UserError
from vae_cli.training import run
from pathlib import Path

assert str(Path(vae_cli.__file__).parents[1]) == str(Path.cwd())
found = []
with patch.multiple(Reporter, figures=DEFAULT, page=DEFAULT):
    for k, overrides in enumerate(json.loads(sys.argv[1])):
        quick = ["trainer.steps=2", "trainer.log_likelihood_samples=0", "trainer.device=cpu"]
        found.append(run.train(compose(*overrides, *quick), Path(f"runs/{k}"), resume=False))
for wrong in json.loads(sys.argv[2]):
    try:
        compose(*wrong)
    except UserError as error:
        found.append(str(error))
print(json.dumps(found))
"""
ONE_LAYER = "latent=flat or groups is allowed"
WRONG = {  # what is checked of the new parts, from their signatures and facts
    "latent=groups latent.groups=0": "latent.groups=0: at least 1 is allowed",
    "latent=groups posterior=full_gaussian": (
        "latent=groups: a KL of each dimension is needed; posterior=gaussian is allowed"
    ),
    "latent=ladder objective=dip": f"objective=dip: its layers would depend on one another; {ONE_LAYER}",
    "data=moons data.noise=-1": "data.noise=-1: at least 0 is allowed",
}


def test_the_worked_examples_train_and_are_checked_like_our_own(tmp_path):
    for folder in ("vae_cli", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    added = files(ROOT / "CONTRIBUTING.md")
    assert len(added) == 8
    assert not any((tmp_path / name).exists() for name in added)
    write(added, tmp_path)
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).poisson(3.0, (200, 6)).astype(np.float32))
    shown = [arguments for name, arguments in commands(ROOT / "CONTRIBUTING.md") if name == "vae-train"]
    assert len(shown) == 4
    arguments = [json.dumps(shown), json.dumps([each.split() for each in WRONG])]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", STEPS, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *summaries, first, second, third, fourth = json.loads(done.stdout.splitlines()[-1])
    assert [summary["steps"] for summary in summaries] == [2, 2, 2, 2]
    assert summaries[0]["measure"] == "log-mass of counts"
    warned = json.loads((tmp_path / "runs" / "0" / "summary.json").read_text())["warnings"]
    assert not any("uniform guess" in line for line in warned)  # no guess is uniform over all counts
    for line, told in zip(WRONG.values(), (first, second, third, fourth), strict=True):
        assert told == line
