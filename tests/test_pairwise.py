"""Every pair of options of different groups builds and takes two steps, or is refused with a clear line."""

import itertools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import train
from vae_cli.errors import CONF, UserError
from vae_cli.report import Reporter

GROUPS = ("model", "likelihood", "kl", "conditional", "optimizer", "lr_schedule", "prior", "posterior", "objective")
OPTIONS = {group: sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")) for group in GROUPS}
OPTIONS["data"] = ["digits", "synthetic", "table", "colours", "images"]
OPTIONS["extra"] = ["", "objective.samples=3", "trainer.ema=0.9", "trainer.precision=bf16", "kl.free_bits=0.1"]
REASONS = r"(is|are) allowed|no labels"  # what a refusal says
IMPOSSIBLE = [
    ({"data": "table"}, {"model": ("conv", "resnet")}),
    ({"data": "table"}, {"likelihood": ("bernoulli", "continuous_bernoulli", "categorical", "discretized_logistic")}),
    ({"data": "images"}, {"conditional": ("label",)}),
]


def cover(options, seed=0):
    """Return few combinations that hold every pair of options of different groups: greedy, from random tries."""
    rng, groups = random.Random(seed), list(options)
    missing = {
        frozenset([(g, a), (h, b)])
        for g, h in itertools.combinations(groups, 2)
        for a, b in itertools.product(options[g], options[h])
    }
    chosen = []
    while missing:
        must = dict(min(missing, key=sorted))
        tries = [{**{g: rng.choice(options[g]) for g in groups}, **must} for _ in range(30)]
        gain = [{frozenset(pair) for pair in itertools.combinations(one.items(), 2)} & missing for one in tries]
        best = max(range(30), key=lambda k: len(gain[k]))
        missing -= gain[best]
        chosen.append(tries[best])
    return chosen


COVER = cover(OPTIONS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Small data of a user's own: a table, colour arrays with attributes, a folder of pictures."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    np.savez(folder / "table.npz", x=rng.normal(size=(60, 5)), y=np.arange(60) % 3)
    np.savez(folder / "colours.npz", x=rng.integers(0, 256, (60, 7, 9, 3)).astype("uint8"), y=rng.random((60, 4)))
    (folder / "images").mkdir()
    for k in range(40):
        Image.fromarray(rng.integers(0, 256, (9, 8, 3)).astype("uint8")).save(folder / "images" / f"{k}.png")
    return {
        "digits": ["data=digits", "data.limit=100"],
        "synthetic": ["data=synthetic", "data.n=100", "data.shape=[10,8]"],
        "table": ["data=arrays", f"data.path={folder}/table.npz"],
        "colours": ["data=arrays", f"data.path={folder}/colours.npz"],
        "images": ["data=images", f"data.path={folder}/images", "data.size=8", "data.color=grayscale"],
    }


def test_the_cover_covers():
    held = {frozenset(pair) for one in COVER for pair in itertools.combinations(one.items(), 2)}
    for g, h in itertools.combinations(OPTIONS, 2):
        for a, b in itertools.product(OPTIONS[g], OPTIONS[h]):
            assert frozenset([(g, a), (h, b)]) in held


@pytest.mark.parametrize("chosen", COVER, ids=lambda chosen: "-".join(filter(None, chosen.values())))
def test_a_combination_trains_or_is_refused(chosen, files, tmp_path, monkeypatch):
    monkeypatch.setattr(Reporter, "figures", lambda *_: None)  # drawn in other tests; they would take the longest here
    overrides = [f"{group}={option}" for group, option in chosen.items() if group not in ("data", "extra")]
    overrides += [*files[chosen["data"]], *filter(None, [chosen["extra"]]), "trainer.steps=2", "trainer.log_every=1"]
    overrides += ["model.latent_dim=3", "trainer.batch_size=16", "trainer.grad_clip=10"]
    impossible = any(
        all(chosen[g] == v for g, v in one.items()) and all(chosen[g] in v for g, v in other.items())
        for one, other in IMPOSSIBLE
    )
    if impossible:
        with pytest.raises(UserError, match=REASONS) as caught:
            train(tmp_path, *overrides)
        assert "\n" not in str(caught.value)
    else:
        summary = train(tmp_path, *overrides)
        assert all(math.isfinite(value) for key, value in summary.items() if "/" in key)
