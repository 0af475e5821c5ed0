"""Where a step goes on the CPU: `python -m benchmarks.step`.

Times one training step of the MLP (784-400-20, batch 128) and its parts alone, each the least of many repeats: the
matrix products that nothing can avoid, Adam's pass over the weights, gathering and binarising the batch. What is left
is elementwise arithmetic and the calls themselves. The floor says how far a faster loop could get.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.throughput import COMMON, RESULTS, machine, products
from vae_cli.config import compose
from vae_cli.parts import build, load_dataset
from vae_cli.report import Silent
from vae_cli.training.assembly import build_objective, build_trainer
from vae_cli.training.trainer import Trainer

REPEATS, CALLS = 40, 25


def least(call: Callable[[], object]) -> float:
    """Return the least mean time of some calls, ms."""
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - start) / CALLS)
    return 1e3 * min(found)


def trainer() -> Trainer:
    """Return the trainer of the case mlp-128."""
    config, cpu = compose(*COMMON, "trainer.device=cpu"), torch.device("cpu")
    dataset = load_dataset(config)
    torch.manual_seed(0)
    vae = build(config, dataset.spec)
    objective = build_objective(config, vae, dataset, cpu)
    return build_trainer(config, vae, objective, dataset, Silent(), Path(tempfile.gettempdir()))


def parts(threads: int) -> dict[str, float]:
    """Return the times of a step and its parts under so many threads, ms."""
    torch.set_num_threads(threads)
    made = trainer()
    indices = made._indices()
    x = made.train.batch(next(indices)[0]).x
    index, calls = next(indices)[0], products(made.stepper.vae, x)
    found = {"whole step": least(lambda: made._update(next(indices)))}
    found["matrix products"] = least(lambda: [call() for call in calls])
    found["Adam"] = least(made.stepper.optimizer.step)
    found["gather and binarise"] = least(lambda: made.train.batch(index))
    found["elementwise arithmetic and calls"] = 2.0 * found["whole step"] - sum(found.values())
    return found


def main() -> None:
    """Measure, print the table, and write it to benchmarks/results."""
    columns = {threads: parts(threads) for threads in (1, 2)}
    lines = [
        f"# A step of the MLP on the CPU\n\nWritten by `python -m benchmarks.step`. {machine(torch.device('cpu'))}.\n"
    ]
    lines += ["784-400-20, batch 128, least of the repeats, ms. A step cannot take less than its matrix products.\n"]
    lines += [
        "| | " + " | ".join(f"{threads} threads" for threads in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name in columns[1]:
        lines.append(f"| {name} | " + " | ".join(f"{found[name]:.2f}" for found in columns.values()) + " |")
    ratios = [f"{found['whole step'] / found['matrix products']:.2f}" for found in columns.values()]
    lines.append(f"| whole step / matrix products | {' | '.join(ratios)} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "step-cpu.md").write_text(text)


if __name__ == "__main__":
    main()
