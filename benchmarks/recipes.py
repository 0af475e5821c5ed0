"""The recipes of papers, run at the length and on the data that are at hand, beside the published values.

    VAE_DATA=FOLDER python -m benchmarks.recipes            # runs what is missing, then writes recipes.md
    VAE_DATA=FOLDER python -m benchmarks.recipes --only burda2016_vae

With all 60,000 MNIST digits and the recipes' own epochs: vae-train experiment=NAME, then vae-eval run=FOLDER.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from vae_cli.config import compose

RESULTS = Path(__file__).parent / "recipes.md"
FOLDER = Path("outputs") / "benchmarks" / "recipes"
SHORT = {
    "burda2016_vae": ["trainer.epochs=120"],
    "burda2016_iwae": ["trainer.epochs=40", "objective.samples=5"],
    "tomczak2018_standard": ["trainer.epochs=100", "data.valid=1000"],
    "tomczak2018_vamp": ["trainer.epochs=100", "data.valid=1000"],
    "sonderby2016_ladder": ["trainer.epochs=150"],
    "ppca": [],
}
PUBLISHED = {
    "burda2016_vae": "−86.76 (3,280 epochs of 60,000 digits)",
    "burda2016_iwae": "−85.54 for k = 5, −84.78 for k = 50 (3,280 epochs of 60,000 digits)",
    "tomczak2018_standard": "−84.45 ± 0.12 (up to 2,000 epochs of 50,000 digits)",
    "tomczak2018_vamp": "−82.43 ± 0.06 (up to 2,000 epochs of 50,000 digits)",
    "sonderby2016_ladder": "−82.12 with batch normalisation (2,000 epochs of 60,000 digits)",
    "ppca": "17.4519 in closed form",
    "kingma2014_freyfaces": "curves of the bound alone",
    "higgins2017_beta": "99.23 % by their own metric",
    "chen2018_tc": "MIG in figures alone",
    "rybkin2021_sigma": "FID alone",
}
HEAD = """# Recipes: what was run, and what was published

Written by `python -m benchmarks.recipes`. MNIST here is its first 10,000 training digits and all 10,000 test digits,
and the runs are far shorter than the papers': the two columns are not the same experiment. log p(x) in nats by 1,000
importance samples (ppca: 5,000, on the training digits, which it is defined on) ± standard error over examples."""


def run(name: str) -> dict[str, float]:
    """Train and evaluate a recipe, unless that is done, and return its numbers."""
    folder = FOLDER / name
    if not (folder / "summary.json").is_file():
        settings = [f"experiment={name}", *SHORT[name], f"hydra.run.dir={folder}", "trainer.log_likelihood_samples=0"]
        subprocess.run([sys.executable, "-m", "vae_cli.commands.train", *settings], check=True)
    split, samples = ("train", 5000) if name == "ppca" else ("test", 1000)
    if not (folder / "evaluation.json").is_file():
        settings = [f"run={folder}", f"split={split}", f"samples={samples}", "metrics=[elbo,log_likelihood]"]
        subprocess.run([sys.executable, "-m", "vae_cli.commands.evaluate", *settings], check=True)
    found = json.loads((folder / "evaluation.json").read_text()) | json.loads((folder / "summary.json").read_text())
    return {key.removeprefix(f"{split}/"): value for key, value in found.items() if isinstance(value, (int, float))}


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SHORT), help="recipes, by commas")
    only = parser.parse_args().only.split(",")
    lines = [
        "| recipe | run here | log p(x) | ELBO | active units | training s | published |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, published in PUBLISHED.items():
        if name in only:
            run(name)
        if not (FOLDER / name / "evaluation.json").is_file():
            lines.append(f"| `{name}` | not run | | | | | {published} |")
            continue
        config, found = compose(f"experiment={name}", *SHORT[name]), run(name)
        settings = ", ".join(f"`{setting}`" for setting in SHORT[name]) or "as it is"
        lines.append(
            f"| `{name}` | {settings} ({config.trainer.epochs} epochs) | {found['log_likelihood']:.2f} ± "
            f"{found['log_likelihood_stderr']:.2f} | {found['elbo']:.2f} | {found['active_units']} | "
            f"{found['train_seconds']:.0f} | {published} |"
        )
    RESULTS.write_text(f"{HEAD}\n\n" + "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
