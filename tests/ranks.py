"""Trains many compositions for a few steps, alone or as one of several ranks: `torchrun … tests/ranks.py FOLDER`."""

import atexit
import os
import sys
from pathlib import Path

from vae_cli.config import compose
from vae_cli.system import parallel
from vae_cli.training import run
from vae_cli.training.step import Step

COMMON = [
    "data=synthetic", "data.n=400", "data.shape=[12,12]", "model.latent_dim=4", "trainer.steps=20",
    "trainer.batch_size=64", "trainer.log_every=1", "trainer.validate_every=2", "trainer.device=cpu",
]  # fmt: skip
LADDER = ["latent=ladder", "latent.below=[3]", "latent.hidden=[8]", "model.hidden=[16]"]
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
    "intervals": ["trainer.log_every=10", "trainer.checkpoint_every=7"],
    "bf16": ["trainer.precision=bf16"],
}


def main(folder: Path, names: list[str]) -> None:
    """Train the compositions of those names, each in a folder of its own; only training is of interest."""
    atexit.register(refuse_threads_of_gloo)
    run.finish = lambda *_: {}
    parallel.part_ways = lambda: None
    for name in names or CASES:
        hidden = [] if "latent=ladder" in CASES[name] else ["model.hidden=[32]"]
        config = compose(*COMMON, *hidden, *CASES[name])
        run.train(config, folder / name)
        if name == "intervals":
            killed_and_resumed(config, folder / "resumed")


def killed_and_resumed(config, folder: Path) -> None:
    """Lose all ranks at step 18, and go on from the checkpoint of step 14."""
    step, taken = Step.__call__, []

    def stopping(self, *arguments, **named):
        taken.append(step(self, *arguments, **named))
        if len(taken) == 18:
            raise KeyboardInterrupt

    Step.__call__ = stopping
    try:
        run.train(config, folder)
    except KeyboardInterrupt:
        Step.__call__ = step
        run.train(config, folder, resume=True)


def refuse_threads_of_gloo() -> None:
    """End in failure where threads are left that would meet the end of Python: registered first, it comes last."""
    names = [(path / "comm").read_text().strip() for path in Path("/proc/self/task").iterdir()]
    if left := [name for name in names if "gloo_runloop" in name]:
        print(f"left at the end: {left}", flush=True)
        os._exit(9)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
