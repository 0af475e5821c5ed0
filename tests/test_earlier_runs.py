"""Runs of the first layout, whose model held the latents: each is restored, evaluated and resumed as one of today."""

import shutil

import pytest
import torch
import yaml

from tests.conftest import TINY, configure, train
from vae_cli import api
from vae_cli.commands.evaluate import evaluate
from vae_cli.config import PATHS, modernise, modernise_state, validate_evaluate
from vae_cli.system import checkpoint

SHORT = [*TINY, "trainer.log_likelihood_samples=0", "trainer.ema=0.9"]
RUNS = {
    "mlp": ["model=mlp", "likelihood=gaussian"],
    "ladder": ["model=ladder", "prior=mixture"],
    "vamp": ["model=mlp", "prior=vamp", "prior.components=7", "conditional=label"],
    "convolutions": ["model=conv", "model.hidden=[40]", "latent=ladder", "model.channels=[8]", "kl=linear"],
}
THEN = {  # where the first layout had the classes of these modules
    "likelihood.": "vae_cli.likelihood", "prior.": "vae_cli.prior", "posterior.": "vae_cli.posterior",
    "objective.": "vae_cli.objective", "kl": "vae_cli.schedule", "lr_schedule": "vae_cli.schedule",
    "conditional": "vae_cli.conditioning", "data.synthetic": "vae_cli.data.embedded",
}  # fmt: skip


def target_then(target):
    """The target of a part in the first layout, whose classes had the names that they have now."""
    module, _, name = target.removeprefix("vae_cli.").rpartition(".")
    found = next((old for new, old in THEN.items() if module.startswith(new)), f"vae_cli.{module}")
    return f"{found}.{name}"


def settings_then(now):
    """Settings as the first layout stored them."""
    found = {key: {**each, "_target_": target_then(each["_target_"])} if "_target_" in each else each
             for key, each in now.items() if isinstance(each, dict)}  # fmt: skip
    latent = found.pop("latent")
    found["data"] = {key: value for key, value in found["data"].items() if key not in ("missing", "limit_train")}
    if latent["_target_"].endswith("Ladder"):
        model = found["model"]
        found["model"] = {
            "_target_": "vae_cli.model.ladder.Ladder", "latent_dim": model["latent_dim"], "below": latent["below"],
            "hidden": [model["hidden"][0], *latent["hidden"]], "depth": 1, "channels": model.get("channels", []),
            "activation": latent["activation"],
        }  # fmt: skip
    return {**{key: each for key, each in now.items() if key != "latent"}, **found}


def name_then(name, ladder):
    """The name of a weight in the first layout."""
    group, _, rest = name.partition(".")
    if group == "latent":
        top = "top." if ladder else ""
        owner, _, own = rest.partition(".")
        return f"{owner}.{top}{own}" if owner in ("posterior", "prior") else f"model.{rest}"
    return f"model.body.{rest}" if ladder and group == "model" else name


def made_old(folder):
    """Rewrite a run folder as the first layout would have left it."""
    path = folder / ".hydra" / "config.yaml"
    then = settings_then(yaml.safe_load(path.read_text()))
    path.write_text(yaml.safe_dump(then))
    ladder = then["model"]["_target_"].endswith("Ladder")
    for each in (folder / "checkpoints").glob("*.pt"):
        state = checkpoint.load(each)
        for key in ("model", "averaged"):
            if state.get(key):
                state[key] = {name_then(name, ladder): value for name, value in state[key].items()}
        checkpoint.save({**state, "config": settings_then(state["config"])}, each)


@pytest.fixture(scope="module", params=RUNS)
def pair(request, tmp_path_factory):
    """A run of today, and the same as the first layout left it."""
    root, settings = tmp_path_factory.mktemp("earlier"), [*SHORT, *RUNS[request.param]]
    train(root / "now", *settings)
    (root / "now" / ".hydra").mkdir()
    (root / "now" / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*settings).plain))
    shutil.copytree(root / "now", root / "then")
    made_old(root / "then")
    return root / "now", root / "then", settings


def test_its_settings_and_weights_are_named_as_today(pair):
    now, then, _ = pair
    raw = yaml.safe_load((then / ".hydra" / "config.yaml").read_text())
    assert "latent" not in raw
    assert modernise(raw) == yaml.safe_load((now / ".hydra" / "config.yaml").read_text())
    states = [checkpoint.load(folder / "checkpoints" / "last.pt") for folder in pair[:2]]
    assert not {name for name in states[1]["model"] if name.startswith("latent.")}
    for key in ("model", "averaged"):
        assert list(modernise_state(states[1])[key]) == list(states[0][key])
    assert checkpoint.digest(modernise_state(states[0])) == checkpoint.digest(states[0])


def test_it_is_loaded_and_evaluated_as_today(pair):
    (x, y), (other, _) = (api.load_data(folder, "test") for folder in pair[:2])
    assert torch.equal(x, other)
    label = y if api.load(pair[0]).conditional else None
    means = [api.load(folder, device="cpu").encode(x, label).mean for folder in pair[:2]]
    assert torch.equal(*means)
    raw = {"split": "test", "samples": 5, "examples": None, "metrics": ["elbo"], "amortisation_examples": 5,
           "batch_size": None, "device": "cpu", "compile": False, "seed": 0, "trust": False,
           "data": dict.fromkeys(PATHS)}  # fmt: skip
    found = [evaluate(validate_evaluate({**raw, "run": str(folder)}))["test/elbo"] for folder in pair[:2]]
    assert found[0] == found[1]


def test_it_goes_on_to_the_bit(pair):
    now, then, settings = pair
    for folder in (now, then):
        train(folder, *settings, "trainer.steps=4", resume=True)
    one, other = (checkpoint.load(folder / "checkpoints" / "last.pt") for folder in (now, then))
    assert one["step"] == other["step"] == 4
    for key in ("model", "averaged", "optimizer"):
        assert checkpoint.digest(one[key]) == checkpoint.digest(other[key]), key
