"""The end of a run and vae-eval give the same numbers, since they are the same functions."""

import json
from types import SimpleNamespace

import pytest
import yaml

from tests.conftest import TINY, configure, train
from vae_cli.commands.evaluate import evaluate
from vae_cli.config import PATHS, validate_evaluate
from vae_cli.data import Spec
from vae_cli.training.effort import EVALUATED, affordable

COUNTS = (*TINY[:-1], "trainer.steps=30", "trainer.log_likelihood_samples=20", "score=valid/log_likelihood")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, with the settings that vae-train would have written beside it."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(path, *COUNTS)
    (path / ".hydra").mkdir()
    (path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(configure(*COUNTS).plain))
    return path


@pytest.mark.parametrize("split", ["test", "valid"])
def test_a_summary_has_the_numbers_of_an_evaluation_to_the_bit(run, split):
    settings = {"run": str(run), "split": split, "samples": 20, "examples": None, "batch_size": None, "device": "cpu",
                "metrics": ["elbo", "log_likelihood", "aggregate"], "amortisation_examples": 5, "compile": False,
                "seed": 0, "trust": False, "data": dict.fromkeys(PATHS)}  # fmt: skip
    found = evaluate(validate_evaluate(settings))
    summary = json.loads((run / "summary.json").read_text())
    shared = [key for key in summary if key.startswith(f"{split}/")]
    wanted = {"elbo", "reconstruction", "kl", "active_units", "bits_per_dim", "log_likelihood", "posterior_gap"}
    assert wanted <= {key.partition("/")[2] for key in shared}
    assert {key: found[key] for key in shared} == {key: summary[key] for key in shared}
    evaluated = json.loads((run / "evaluation.json").read_text())
    assert evaluated[f"{split}/measure"] == summary["measure"]


def effort(size, sizes, trained, **settings):
    config = configure(*[f"trainer.{key}={value}" for key, value in settings.items()])
    spec = Spec((3, size, size), 256, 0.0, 1.0)
    held_out = max(n for split, n in sizes.items() if split != "train")
    dataset = SimpleNamespace(spec=spec, sizes=sizes, train=range(sizes["train"]), most_held_out=held_out)
    return affordable(config.trainer, dataset, trained), config.trainer, dataset


@pytest.mark.parametrize("trained", [1, 10**4, 10**6, 10**9])
@pytest.mark.parametrize("size", [8, 64, 512])
def test_longer_training_never_spares_more_and_the_settings_are_the_most(size, trained):
    sizes = {"train": 50_000, "valid": 1000, "test": 2000}
    less, settings, dataset = effort(size, sizes, trained)
    more, *_ = effort(size, sizes, 10 * trained)
    assert 1 <= less.draws <= more.draws <= settings.final_samples
    assert less.train <= more.train <= EVALUATED
    assert less.weighed <= more.weighed <= settings.log_likelihood_examples
    whole = (less.draws, less.train) == (settings.final_samples, EVALUATED)
    whole &= less.weighed >= min(settings.log_likelihood_examples, dataset.most_held_out)
    assert (less.spared(settings, dataset) == "") == whole
