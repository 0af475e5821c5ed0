"""How fast training is, side by side in one process: `python -m benchmarks.throughput [--device cpu] [--case mlp-128]`.

Ours is the whole `vae-train` loop with its default logging, validation, checkpoints and TensorBoard; the end of a run
(log p(x), figures, the report) is outside the clock, as the others have none. The rivals train the same network on the
same 60,000 synthetic pictures, binarised anew for each batch, with the same optimiser settings:

- bare: a hand-written loop over a resident tensor, fused Adam, nothing logged;
- pythae: its BaseTrainer (`pip install pythae`);
- loader: a torchvision-like data set with ToTensor behind a DataLoader, `.item()` each step, as the well-known example;
- lightning: its Trainer over resident batches, progress bar off (`pip install lightning`);
- floor: the matrix products and convolutions of a step, forward and backward, alone.

Repeats alternate. The table gives the median rate and how ours stands to each rival: median, least and largest ratio
of the repeats.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import platform
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_cli.batch import Batch
from vae_cli.config import compose
from vae_cli.model.layers import ConvTranspose
from vae_cli.parts import build, load_dataset
from vae_cli.training import run
from vae_cli.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
EXAMPLES = 60_000
CASES = {
    "mlp-128": ["model=mlp", "data.shape=[28,28]", "trainer.batch_size=128"],
    "mlp-1024": ["model=mlp", "data.shape=[28,28]", "trainer.batch_size=1024"],
    "conv-28": ["model=conv", "model.channels=[32,64]", "data.shape=[28,28]", "trainer.batch_size=128"],
    "conv-32x3": ["model=conv", "model.channels=[32,64]", "data.shape=[3,32,32]", "trainer.batch_size=128"],
}
STEPS = {"mlp-128": 1000, "mlp-1024": 200, "conv-28": 200, "conv-32x3": 120}  # default logging and validation included
COMMON = ["data=synthetic", f"data.n={EXAMPLES}", "data.test=0", "data.valid=1000", "data.binarize=dynamic"]
Rival = Callable[["Case"], float]


class Case:
    """One network, one data set, one batch size."""

    def __init__(self, name: str, device: torch.device, steps: int, extra: list[str]):
        self.name, self.device, self.steps = name, device, steps
        self.overrides = [*COMMON, *CASES[name], f"trainer.device={device.type}", *extra]
        self.config = compose(*self.overrides)
        self.batch = self.config.trainer.batch_size
        self.dataset = load_dataset(self.config)
        self.x = self.dataset.train.x.to(device)

    def short(self) -> Case:
        """Return the same case with few steps."""
        other = copy.copy(self)
        other.steps = 20
        return other

    def network(self) -> nn.Module:
        """Return the network as its rivals would write it: initialised, of torch's own layers."""
        vae = build(self.config, self.dataset.spec).to(self.device)
        for module in vae.modules():
            if isinstance(module, ConvTranspose):
                module.__class__ = nn.ConvTranspose2d  # type: ignore[assignment]
        return vae

    def timed(self, steps: Callable[[int], None]) -> float:
        """Return examples/s of `steps(n)`, after a warm-up of a tenth."""
        steps(max(5, self.steps // 10))
        self.wait()
        start = time.perf_counter()
        steps(self.steps)
        self.wait()
        return self.steps * self.batch / (time.perf_counter() - start)

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def ours(case: Case) -> float:
    """The whole loop of vae-train."""
    found = {}
    fit = Trainer.fit

    def timed(trainer: Trainer) -> None:
        case.wait()
        start = time.perf_counter()
        fit(trainer)
        case.wait()
        found["rate"] = trainer.step * trainer.batch_size / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder, quiet():
        Trainer.fit = timed  # type: ignore[method-assign]
        try:
            settings = [*case.overrides, f"trainer.steps={case.steps}", "trainer.log_likelihood_samples=0"]
            run.train(compose(*settings), Path(folder) / "run")
        finally:
            Trainer.fit = fit  # type: ignore[method-assign]
    return found["rate"]


def loss_of(vae: Any, x: Tensor) -> Tensor:
    """Return the negative ELBO as such loops are usually written, over our network."""
    loc, log_scale = vae.latent.parameters_of(vae.model.encode(x, None)).chunk(2, -1)
    z = loc + log_scale.exp() * torch.randn_like(loc)
    logits = vae.model.decode(z, None)[:, 0]
    reconstruction = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = -0.5 * torch.sum(1.0 + 2.0 * log_scale - loc**2 - (2.0 * log_scale).exp())
    return (reconstruction + kl) / len(x)


def adam(vae: nn.Module) -> torch.optim.Optimizer:
    """Return fused Adam over a network."""
    return torch.optim.Adam(vae.parameters(), lr=1e-3, fused=True)


def bare(case: Case) -> float:
    """A hand-written loop over a resident tensor."""
    vae = case.network()
    optimizer = adam(vae)

    def steps(n: int) -> None:
        order = torch.randperm(len(case.x), device=case.device)
        for k in range(n):
            start = k * case.batch % (len(case.x) - case.batch)
            x = torch.bernoulli(case.x[order[start : start + case.batch]].float() / 255.0)
            optimizer.zero_grad(set_to_none=True)
            loss_of(vae, x).backward()
            optimizer.step()

    return case.timed(steps)


def loader(case: Case) -> float:
    """A data set of single examples behind a DataLoader, the loss read each step."""
    x = case.dataset.train.x

    class Pictures(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> Tensor:
            from torchvision.transforms.functional import to_tensor

            return to_tensor(x[i].movedim(0, -1).numpy() if x.ndim == 4 else x[i].numpy())

    vae = case.network()
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    batches = torch.utils.data.DataLoader(Pictures(), case.batch, shuffle=True)

    def steps(n: int) -> None:
        total, done = 0.0, 0
        while done < n:
            for batch in batches:
                x = torch.bernoulli(batch.to(case.device)).view(-1, *case.dataset.spec.shape)
                optimizer.zero_grad()
                loss = loss_of(vae, x)
                loss.backward()
                total += loss.item()
                optimizer.step()
                done += 1
                if done == n:
                    break

    return case.timed(steps)


def lightning(case: Case) -> float:
    """Lightning's Trainer over resident batches."""
    import lightning as pl

    vae = case.network()

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.vae = vae

        def training_step(self, batch: Tensor, _: int) -> Tensor:
            loss = loss_of(self.vae, torch.bernoulli(batch[0].float() / 255.0))
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adam(self)

    batches = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(case.x), case.batch, shuffle=True)
    accelerator = "gpu" if case.device.type == "cuda" else "cpu"

    def steps(n: int) -> None:
        with tempfile.TemporaryDirectory() as folder, quiet():
            pl.Trainer(
                max_steps=n, accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
            ).fit(Module(), batches)  # fmt: skip

    return case.timed(steps)


def pythae(case: Case) -> float:
    """pythae's BaseTrainer, timed over whole epochs of as many examples as the steps take."""
    from benchmarks import rivals

    return rivals.rate(case.network(), case.x[: case.steps * case.batch], case.batch, case.device)


def floor(case: Case) -> float:
    """The products and convolutions of a step, forward and backward, alone."""
    vae = build(case.config, case.dataset.spec).to(case.device)
    x = case.x[: case.batch].float() / 255.0
    calls = products(vae, x)

    def steps(n: int) -> None:
        for _ in range(n):
            for call in calls:
                call()

    return case.timed(steps)


def products(vae: nn.Module, x: Tensor) -> list[Callable[[], object]]:
    """Return the products of a step: each layer's, and those of its gradients that a step needs."""
    calls: list[Callable[[], object]] = []

    def add(module: Any, given: tuple[Tensor], out: Tensor) -> None:
        h, g, w, b = given[0].detach(), torch.randn_like(out), module.weight.detach(), module.bias.detach()
        wanted = (h.data_ptr() != x.data_ptr(), True, False)
        if isinstance(module, nn.Linear):
            calls.append(lambda: torch.addmm(b, h, w.t()))
            calls.append(lambda: g.t().mm(h))
            if wanted[0]:
                calls.append(lambda: g.mm(w))
            return
        turned = isinstance(module, nn.ConvTranspose2d)
        extra = list(module.output_padding) if turned else [0, 0]
        settings = (list(module.stride), list(module.padding), list(module.dilation), turned, extra, module.groups)
        calls.append(torch.no_grad()(lambda: module(h)))
        calls.append(lambda: torch.ops.aten.convolution_backward(g, h, w, None, *settings, wanted))

    kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)
    hooks = [each.register_forward_hook(add) for each in vae.modules() if isinstance(each, kinds)]
    vae(Batch(x))
    for hook in hooks:
        hook.remove()
    return calls


RIVALS: dict[str, Rival] = {
    "ours": ours, "bare": bare, "pythae": pythae, "loader": loader, "lightning": lightning, "floor": floor,
}  # fmt: skip


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the rivals' and our own lines off the terminal."""
    import contextlib
    import io
    import logging

    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "pythae"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def present(name: str) -> bool:
    """Whether a rival can be run here."""
    return importlib.util.find_spec(name) is not None if name in ("pythae", "lightning") else True


def measure(case: Case, names: list[str], repeats: int) -> dict[str, list[float]]:
    """Return examples/s of each rival, the repeats alternating; a first round, which imports things, does not count."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for repeat in range(-1, repeats):
        for name in names:
            gc.collect()
            torch.manual_seed(0)
            rate = RIVALS[name](case if repeat >= 0 else case.short())
            rates[name] += [rate] if repeat >= 0 else []
    return rates


def row(case: Case, rates: dict[str, list[float]]) -> dict[str, Any]:
    """Return the medians and the ratios of ours to each rival."""
    found: dict[str, Any] = {"case": case.name, "steps": case.steps, "batch": case.batch}
    found["examples_per_second"] = {name: statistics.median(each) for name, each in rates.items()}
    found["best"] = {name: max(each) for name, each in rates.items()}
    found["ratio"] = {
        name: {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        for name, each in rates.items() if name != "ours"
        for ratios in [[a / b for a, b in zip(rates["ours"], each, strict=True)]]
    }  # fmt: skip
    found["peak_memory_mib"] = peak(case.device)
    return found


def peak(device: torch.device) -> int:
    """Return the peak memory of the process (on CUDA: of the device), MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() // 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def machine(device: torch.device) -> str:
    """Return the machine in words."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python {platform.python_version()}"


def cpu_name() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def table(rows: list[dict[str, Any]], about: str) -> str:
    """Return the results as Markdown."""
    names = [name for name in RIVALS if any(name in row["examples_per_second"] for row in rows)]
    lines = [f"# Training throughput\n\nWritten by `python -m benchmarks.throughput`. {about}.\n"]
    lines += ["Examples/s, median of the repeats; in brackets ours against it: median (least … largest).\n"]
    lines += ["| case | " + " | ".join(names) + " | peak MiB |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        cells = []
        for name in names:
            rate, ratio = row["examples_per_second"].get(name), row["ratio"].get(name)
            shown = "" if rate is None else f"{rate:,.0f}"
            cells.append(
                shown + (f" ({ratio['median']:.2f}; {ratio['min']:.2f} … {ratio['max']:.2f})" if ratio else "")
            )
        lines.append(f"| {row['case']} | " + " | ".join(cells) + f" | {row['peak_memory_mib']:,} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, and write it to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--rival", action="append", choices=RIVALS)
    parser.add_argument("--steps", type=int, help="of each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-results", action="store_true", help="print alone")
    parser.add_argument("overrides", nargs="*", help="settings for ours, e.g. trainer.compile=true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    names = [name for name in RIVALS if present(name) and name in ("ours", *(arguments.rival or RIVALS))]
    rows = []
    for name in arguments.case or CASES:
        case = Case(name, device, arguments.steps or STEPS[name], arguments.overrides)
        rows.append(row(case, measure(case, names, arguments.repeats)))
        print(table(rows[-1:], machine(device)).splitlines()[-1], flush=True)
    text = table(rows, machine(device))
    print(text)
    if not arguments.no_results:
        stem = RESULTS / f"throughput-{device.type}-{torch.get_num_threads()}"
        stem.with_suffix(".json").write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=2) + "\n")
        stem.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
