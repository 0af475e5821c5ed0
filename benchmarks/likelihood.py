"""log p(x) of priors and objectives on MNIST, the same networks trained here and by pythae.

    VAE_DATA=FOLDER python -m benchmarks.likelihood                    # everything that is missing, then the table
    VAE_DATA=FOLDER python -m benchmarks.likelihood --only iwae,pythae_iwae

One gated 784-300-300-40 network, dynamic binarisation, 9,000 training digits, batch 100, Adam 1e-3, 100 epochs, the
weights with the best validation loss. Every model is scored by the same estimator (`vae_cli.metrics.log_likelihood`)
on the same binarised test digits. Results go to benchmarks/results/likelihood.json and likelihood.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from vae_cli import finished, metrics, parts
from vae_cli.config import compose
from vae_cli.system import checkpoint
from vae_cli.system.randomness import seed_everything

RESULTS = Path(__file__).parent / "results" / "likelihood.json"
NETWORK = ["data=mnist", "model.hidden=[300,300]", "model.activation=gated", "model.latent_dim=40"]
TRAINING = ["trainer.batch_size=100", "trainer.validate_every=1", "trainer.log_likelihood_samples=0"]
OURS = {
    "standard": [],
    "vamp": ["prior=vamp"],
    "iwae": ["objective=iwae"],
    "mixture": ["prior=mixture", "prior.components=100"],
    "flow_prior": ["prior=flow"],
    "full_gaussian": ["posterior=full_gaussian"],
    "flow_posterior": ["posterior=flow"],
    "annealed": ["kl=linear", "kl.warmup=30"],
    "ladder": [
        "latent=ladder",
        "latent.below=[40]",
        "latent.hidden=[100]",
        "latent.activation=gated",
        "model.latent_dim=10",
        "model.hidden=[300]",
        "kl=linear",
        "kl.warmup=30",
    ],
}
PYTHAE = {"pythae_vae": ("vae", "standard"), "pythae_vamp": ("vamp", "vamp"), "pythae_iwae": ("iwae", "standard")}
ORDER = [*OURS, *PYTHAE]
HEAD = """# log p(x) of priors, posteriors and objectives on MNIST

Written by `python -m benchmarks.likelihood`; its first lines say what was trained. Nats; ± is the standard error over
the 10,000 test digits, of one training seed each; differences to `standard` are paired, digit by digit. With so many
importance samples log p(x) is a lower bound, some 0.2 nats from tight for `standard` and more for the runs with few
effective samples, iwae above all. Weights were chosen by valid/elbo (pythae: by its validation loss). Runs called
pythae_… are the same networks trained by pythae 0.1.2."""


def folder_of(name: str, epochs: int) -> Path:
    """Return the run folder of an entry."""
    return Path("outputs") / "benchmarks" / "likelihood" / f"{name}-{epochs}"


def train_ours(name: str, epochs: int) -> None:
    """Train by vae-train, in a process of its own."""
    settings = [*OURS[name], *TRAINING, f"trainer.epochs={epochs}"]
    own = {setting.partition("=")[0] for setting in OURS[name]}
    settings += [setting for setting in NETWORK if setting.partition("=")[0] not in own]
    command = [sys.executable, "-m", "vae_cli.commands.train", *settings, f"hydra.run.dir={folder_of(name, epochs)}"]
    subprocess.run(command, check=True)


def train_pythae(name: str, epochs: int) -> None:
    """Train by pythae, starting from our initial weights; leave its weights as a checkpoint of ours."""
    from benchmarks import rivals

    kind, prior = PYTHAE[name]
    config = compose(*NETWORK, *TRAINING, f"prior={prior}", f"trainer.epochs={epochs}")
    dataset, cpu = parts.load_dataset(config), torch.device("cpu")
    seed_everything(config.seed)
    vae, folder = parts.build(config, dataset.spec), folder_of(name, epochs)
    train, valid = dataset.resident("train", cpu), dataset.resident("valid", cpu)
    assert train is not None
    assert valid is not None
    started = time.perf_counter()
    pseudo_inputs = rivals.train(
        kind,
        vae.model,
        vae.latent.posterior,
        train,
        valid,
        output_dir=str(folder),
        num_epochs=epochs,
        learning_rate=config.optimizer.model_dump()["lr"],
        per_device_train_batch_size=config.trainer.batch_size,
        per_device_eval_batch_size=config.trainer.batch_size,
        seed=config.seed,
    )
    if pseudo_inputs is not None:  # in [0, 1], ends included
        vae.latent.prior.raw.data.copy_(torch.logit(pseudo_inputs.double().clamp(1e-9, 1 - 1e-9)).float())
    seconds = time.perf_counter() - started
    state = {"model": vae.state_dict(), "spec": dataset.spec.to_dict(), "seconds": seconds}
    checkpoint.save(state, folder / "checkpoints" / "last.pt")
    (folder / ".hydra").mkdir(exist_ok=True)
    (folder / ".hydra" / "config.yaml").write_text(yaml.safe_dump(config.plain))


def score(name: str, epochs: int, samples: int) -> dict[str, Any]:
    """Return what vae-eval says of an entry, and each test digit's log p(x)."""
    cpu, folder = torch.device("cpu"), folder_of(name, epochs)
    run = finished.restore(folder, cpu)
    vae, data = run.vae, parts.load_dataset(run.config).resident("test", cpu)
    assert data is not None
    whole = metrics.evaluate(vae, data, samples=8)
    estimate = metrics.log_likelihood(vae, data, samples=samples)
    torch.save(estimate.log_likelihood, folder / "log_likelihood.pt")
    base = folder_of("standard", epochs) / "log_likelihood.pt"
    paired = estimate.log_likelihood - torch.load(base, weights_only=True)
    summary = folder / "summary.json"
    last = checkpoint.load(folder / "checkpoints" / "last.pt")
    return metrics.numbers(estimate, whole, len(data)) | {
        "elbo": whole.elbo,
        "active_units": whole.active_units,
        "train_seconds": json.loads(summary.read_text())["train_seconds"] if summary.is_file() else last["seconds"],
        "parameters": sum(p.numel() for p in vae.parameters()),
        "epochs": epochs,
        "against_standard": float(paired.mean()),
        "against_standard_stderr": float(paired.std() / len(paired) ** 0.5),
    }


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown; differences to `standard` are paired, digit by digit."""
    lines = [
        "| run | test log p(x) | against standard | test ELBO | gap | active units | effective samples | training s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in ORDER if name in results):
        r = results[name]
        against = "" if name == "standard" else f"{r['against_standard']:+.2f} ± {r['against_standard_stderr']:.2f}"
        lines.append(
            f"| {name} | {r['log_likelihood']:.2f} ± {r['log_likelihood_stderr']:.2f} | {against} | {r['elbo']:.2f} "
            f"| {r['posterior_gap']:.2f} | {r['active_units']} | {r['effective_samples']:.0f} of "
            f"{r['log_likelihood_samples']} | {r['train_seconds']:.0f} |"
        )
    return "\n".join(lines)


def known() -> dict[str, Any]:
    """Return the results there are."""
    return json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else {}


def main() -> None:
    """Train and score what is missing, then print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5000, help="importance samples for each test digit")
    parser.add_argument("--only", default=",".join(ORDER), help="entries, by commas")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(ORDER):
        parser.error(f"--only={unknown.pop()}: {', '.join(ORDER)} are allowed")
    for name in ["standard", *(each for each in only if each != "standard")]:
        before = known().get(name, {})
        if (before.get("epochs"), before.get("log_likelihood_samples")) == (arguments.epochs, arguments.samples):
            continue
        if not (folder_of(name, arguments.epochs) / "checkpoints" / "last.pt").is_file():
            (train_pythae if name in PYTHAE else train_ours)(name, arguments.epochs)
        scored = score(name, arguments.epochs, arguments.samples)
        results = {**known(), name: scored}
        machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
        RESULTS.write_text(json.dumps({"machine": machine, "runs": results}, indent=2) + "\n")
        print(name, results[name], flush=True)
    text = table(known())
    RESULTS.with_suffix(".md").write_text(f"{HEAD}\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    main()
