"""Proof by search: random compositions resume exactly, and random mistakes end in one line."""

import copy
import random
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.conftest import configure
from tests.ordeals import killed_after
from vae_cli.config import compose, flat, validate
from vae_cli.config.options import targets
from vae_cli.config.trust import foreign
from vae_cli.config.words import CONF
from vae_cli.report import Reporter
from vae_cli.system import checkpoint
from vae_cli.system.errors import UserError
from vae_cli.training import run

GROUPS = ("model", "latent", "likelihood", "kl", "conditional", "optimizer", "lr_schedule", "prior",
          "posterior", "objective")  # fmt: skip
CHOICES = {group: sorted(path.stem for path in (Path(CONF) / group).glob("*.yaml")) for group in GROUPS}
EXTRAS = ("", "trainer.ema=0.9", "trainer.grad_clip=1", "objective.samples=3", "trainer.on_nan=skip",
          "kl.free_bits=0.1", "trainer.resident=false", "trainer.precision=bf16",
          "likelihood.scale=optimal")  # fmt: skip
COMMON = ["data=synthetic", "data.n=80", "data.shape=[8,8]", "model.latent_dim=3", "trainer.batch_size=20",
          "trainer.log_likelihood_samples=0", "trainer.log_every=1", "trainer.checkpoint_every=1"]  # fmt: skip


NEEDS = {"conditional": ["conditional=label"], "categorical": ["latent=codes"], "spatial": ["model=conv"]}


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    for name in ("figures", "pictures", "codes", "page"):
        monkeypatch.setattr(Reporter, name, lambda *_: None)


@settings(
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(chosen=st.fixed_dictionaries({group: st.sampled_from(options) for group, options in CHOICES.items()}),
       extra=st.sampled_from(EXTRAS), stop=st.integers(1, 5))  # fmt: skip
def test_a_random_composition_resumes_to_the_bit_or_is_refused(tmp_path_factory, chosen, extra, stop):
    folder = tmp_path_factory.mktemp("search")
    overrides = [*COMMON, *(f"{group}={option}" for group, option in chosen.items()), *filter(None, [extra])]
    try:
        config = compose(*overrides, "trainer.steps=6")
        run.train(config, folder / "whole")
    except (UserError, HydraException):
        return
    with pytest.raises(KeyboardInterrupt), killed_after(stop):
        run.train(config, folder / "parts")
    run.train(config, folder / "parts", resume=True)
    whole, parts = (checkpoint.load(folder / name / "checkpoints" / "last.pt") for name in ("whole", "parts"))
    for key in ("model", "optimizer", "averaged", "objective"):
        assert checkpoint.digest(whole[key]) == checkpoint.digest(parts[key]), key


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**12), st.floats(), st.text(max_size=8),
    st.lists(st.integers(-3, 9), max_size=3), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["auto", "1e400", "nan", "${x}", "../.."]),
)  # fmt: skip
BASE = configure(*COMMON).plain


@settings(max_examples=400, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_random_mistake_in_the_settings_is_one_line(data):
    """Any value in any place, keys taken away and keys added: accepted, or refused in one line."""
    raw = copy.deepcopy(BASE)
    for _ in range(data.draw(st.integers(1, 3))):
        place, key = raw, data.draw(st.sampled_from(sorted(flat(BASE))))
        *path, last = key.split(".")
        for name in path:
            place = place[name] if isinstance(place.get(name), dict) else {}
        action = data.draw(st.sampled_from(["set", "take", "add"]))
        if action == "take":
            place.pop(last, None)
        else:
            place[last if action == "set" else last + "s"] = data.draw(VALUES)
    try:
        validate(raw)
    except UserError as error:
        lines = str(error).count("\n")
    else:
        lines = 0
    assert lines == 0


def test_every_option_is_ours():
    chance = random.Random(0)
    for group, options in CHOICES.items():
        for option in chance.sample(options, min(3, len(options))):
            content = flat(configure(f"{group}={option}", *NEEDS.get(option, ())).plain)
            assert content[f"{group}._target_"] in targets(group)
            assert foreign(group, {"_target_": content[f"{group}._target_"]}) is None
