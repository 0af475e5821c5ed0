"""Every pair of options of different groups builds and takes two steps, or is refused with a clear line."""

import itertools
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import configure, train
from vae_cli.config.words import CONF
from vae_cli.report import Reporter
from vae_cli.system.errors import UserError

GROUPS = (
    "model", "latent", "likelihood", "kl", "conditional", "optimizer", "lr_schedule", "prior", "posterior", "objective",
)  # fmt: skip
OPTIONS = {group: sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")) for group in GROUPS}
OPTIONS["model"].remove("ladder")  # another name of model=mlp latent=ladder
OPTIONS["data"] = ["digits", "synthetic", "table", "colours", "images"]
OPTIONS["extra"] = ["", "objective.samples=3", "trainer.ema=0.9", "trainer.precision=bf16", "kl.free_bits=0.1"]
REFUSAL = r"[a-z_]+(\.[a-z_]+)?(=\S+)?: [^\n]+ (is|are) allowed( \([^()\n]+\))?"  # KEY=GIVEN: why; what is allowed


def but(group, *options):
    """The other options of a group."""
    return tuple(option for option in OPTIONS[group] if option not in options)


ONE_LAYER = ("beta_tc", "factor")  # objectives that need it
NOT_DISCRETE = {"objective": ("beta_tc", "factor", "iwae")}
FREE_BITS = {"kl": ("capacity", "free_bits"), "extra": ("kl.free_bits=0.1",)}
DENSE = ("mlp", "linear")
IMPOSSIBLE = [
    ({"data": "table"}, {"model": but("model", *DENSE), "latent": ("spatial",)}),
    ({"data": "table"}, {"likelihood": but("likelihood", "gaussian", "laplace")}),
    ({"data": "images"}, {"conditional": ("label",)}),
    ({"likelihood": "autoregressive"}, {"data": ("colours",)}),
    ({"prior": "conditional"}, {"conditional": ("none",)}),
    ({"prior": "vamp"}, {"posterior": ("flow",)}),
    ({"latent": "codes"}, {"posterior": but("posterior", "categorical"), "prior": but("prior", "categorical")}),
    ({"posterior": "categorical"}, {"latent": but("latent", "codes"), "prior": but("prior", "categorical")}),
    ({"prior": "categorical"}, {"latent": but("latent", "codes"), "posterior": but("posterior", "categorical")}),
    *(({group: option}, NOT_DISCRETE) for group, option in (
        ("latent", "codes"), ("posterior", "categorical"), ("prior", "categorical")
    )),
    ({"latent": "spatial"}, {"model": DENSE, "posterior": ("flow", "full_gaussian")}),
    ({"latent": "ladder"}, {"objective": ONE_LAYER}),
    ({"objective": "iwae"}, FREE_BITS),
    ({"objective": "beta_tc"}, {"posterior": but("posterior", "gaussian"), **FREE_BITS}),
]  # fmt: skip


def refused(chosen):
    """Whether a choice, whole or in part, holds a pair that cannot be together."""
    return any(
        all(chosen.get(g) == v for g, v in one.items()) and any(chosen.get(g) in v for g, v in other.items())
        for one, other in IMPOSSIBLE
    )


TRIES = 30
SMALL = {  # settings that keep two steps, and the numbers at the end, cheap
    "conv": ["model.channels=[8,8]"],
    "resnet": ["model.channels=[8,8]", "model.blocks=1"],
    "ladder": ["latent.below=[4]", "latent.hidden=[16]"],
    "autoregressive": ["likelihood.hidden=4", "likelihood.layers=1"],
}


def complete(must, options, rng):
    """Return a choice for every group that holds the given ones and can be as a whole, if it is found."""
    chosen = dict(must)
    for group in rng.sample(list(options), len(options)):
        allowed = [o for o in options[group] if refused(must) or not refused({**chosen, group: o})]
        if group not in chosen:
            chosen[group] = rng.choice(allowed or options[group])
    return chosen


def cover(options, seed=0):
    """Return few combinations that hold every pair of options of different groups: greedy, from random tries.

    A pair that can be together is held by a combination that can be as a whole.
    """
    rng = random.Random(seed)
    missing = {
        frozenset([(g, a), (h, b)])
        for g, h in itertools.combinations(options, 2)
        for a, b in itertools.product(options[g], options[h])
    }
    chosen = []
    while missing:
        must = dict(sorted(min(missing, key=sorted)))
        tries = [complete(must, options, rng) for _ in range(TRIES)]
        possible = [one for one in tries if not refused(one)]
        tries, whole = (possible, possible) if possible else (tries, [must] * TRIES)
        gain = [{frozenset(pair) for pair in itertools.combinations(one.items(), 2)} & missing for one in whole]
        best = max(range(len(tries)), key=lambda k: len(gain[k]))
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
    overrides += [setting for option in chosen.values() for setting in SMALL.get(option, [])]
    if refused(chosen):
        with pytest.raises(UserError) as caught:
            train(tmp_path, *overrides)
        assert re.fullmatch(REFUSAL, str(caught.value))
    else:
        summary = train(tmp_path, *overrides)
        assert all(math.isfinite(value) for key, value in summary.items() if "/" in key)


def test_the_ladder_of_an_earlier_version_is_a_model_with_a_latent():
    old, new = configure("model=ladder"), configure("latent=ladder", "model.activation=gelu")
    assert (old.latent, old.model) == (new.latent, new.model)
