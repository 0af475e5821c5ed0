"""Trains many compositions for a few steps, alone or as one of several ranks: `torchrun … tests/ranks.py FOLDER`."""

import sys
from pathlib import Path

from vae_cli import parallel, run
from vae_cli.config import compose

COMMON = [
    "data=synthetic", "data.n=400", "data.shape=[12,12]", "model.latent_dim=4", "trainer.steps=20",
    "trainer.batch_size=64", "trainer.log_every=1", "trainer.validate_every=2", "trainer.device=cpu",
]  # fmt: skip
LADDER = ["model=ladder", "model.hidden=[16,8]", "model.below=[3]"]
CASES = {
    "elbo": ["trainer.ema=0.9", "trainer.grad_clip=0.5"],
    "free_bits": ["kl.free_bits=0.3", "prior=vamp", "prior.components=9"],
    "capacity": ["kl=capacity", "posterior=flow", "trainer.on_nan=skip"],
    "iwae": ["objective=iwae", "objective.samples=5", "posterior=full_gaussian"],
    "beta_tc": ["objective=beta_tc", "data.binarize=static"],
    "mmd": ["objective=mmd", "conditional=label", "prior=conditional"],
    "factor": ["objective=factor", "prior=mixture"],
    "ladder": [*LADDER, "objective=mmd"],
    "optimal_scale": ["likelihood=gaussian", "likelihood.scale=optimal", "data.dequantize=true"],
    "parts": ["trainer.accumulate=2", "trainer.resident=false"],
    "bf16": ["trainer.precision=bf16"],
}


def main(folder: Path, names: list[str]) -> None:
    """Train the compositions of those names, each in a folder of its own; only training is of interest."""
    run._finish = lambda *_: {}
    parallel.part_ways = lambda: None
    for name in names or CASES:
        hidden = [] if "model=ladder" in CASES[name] else ["model.hidden=[32]"]
        run.train(compose(*COMMON, *hidden, *CASES[name]), folder / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
