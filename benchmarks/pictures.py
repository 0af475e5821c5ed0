"""The README's pictures of what goes wrong: collapse, overfitting, a bad σ. `python -m benchmarks.pictures` draws them.

Each trains a handful of runs on the embedded digits (a minute or two in all) and draws their curves beside one another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vae_cli.config import compose
from vae_cli.training import run

DOCS = Path(__file__).parent.parent / "docs"
QUICK = ("trainer.log_likelihood_samples=0", "trainer.epochs=100")
DEEP = ("model.hidden=[256,256,256,256]", "model.latent_dim=32", "optimizer.lr=0.003")
FEW = (
    "data.limit_train=60",
    "data.binarize=threshold",
    "optimizer.lr=0.003",
    "trainer.epochs=600",
    "trainer.log_every=5",
)
GAUSSIAN = ("likelihood=gaussian", "optimizer.lr=0.003")
CASES = {
    "collapse": (("valid/elbo", "valid/kl", "valid/active_units"),
                 {"kl=constant: collapsed": DEEP, "kl.free_bits=0.25: alive": (*DEEP, "kl.free_bits=0.25")}),
    "overfitting": (("train/elbo", "valid/elbo"), {"60 training digits": FEW, "all of them": FEW[1:]}),
    "scale": (("valid/elbo", "valid/kl", "valid/active_units"),
              {"σ = 1, too large": (*GAUSSIAN, "likelihood.scale=1.0"),
               "σ = 0.03, too small": (*GAUSSIAN, "likelihood.scale=0.03"),
               "σ learned": (*GAUSSIAN, "likelihood.scale=optimal")}),
}  # fmt: skip


def main() -> None:
    """Train and draw every case."""
    for name, (keys, runs) in CASES.items():
        curves = {title: history(overrides) for title, overrides in runs.items()}
        print(draw(name, keys, curves))


def history(overrides: Sequence[str]) -> list[dict[str, float]]:
    """Return the lines of metrics.jsonl of a run."""
    with TemporaryDirectory() as folder:
        run.train(compose(*QUICK, *overrides), Path(folder) / "run")
        return [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]


def draw(name: str, keys: Sequence[str], curves: dict[str, list[dict[str, float]]]) -> Path:
    """Draw a panel a key, a curve a run."""
    figure = Figure(figsize=(4.2 * len(keys), 3.2), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(keys)), keys, strict=True):
        for title, lines in curves.items():
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            axes.plot(*zip(*points, strict=True), label=title)
        late = sorted(line[key] for lines in curves.values() for line in lines[len(lines) // 12 :] if key in line)
        margin = 0.05 * (late[-1] - late[0])
        axes.set_ylim(late[0] - margin, late[-1] + margin)
        axes.set_title(key, fontsize=11, loc="left")
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    figure.axes[-1].legend(fontsize=9)
    FigureCanvasAgg(figure)
    figure.savefig(DOCS / f"{name}.png", dpi=90)
    return DOCS / f"{name}.png"


if __name__ == "__main__":
    main()
