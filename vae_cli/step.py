"""One training step as one unit: gather, transform, forward, backward, clip, optimizer, average, sums.

Nothing here waits for the device. On CUDA the whole of it is captured once in a graph and replayed: what a step costs
is then its kernels alone, not their launches from Python.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from vae_cli.data import Resident
from vae_cli.errors import UserError
from vae_cli.objective import Objective, Terms
from vae_cli.optimizer import Adam
from vae_cli.schedule import Constant
from vae_cli.schema import Trainer as TrainerSettings
from vae_cli.vae import VAE

TRACKED = ("loss", "elbo", "reconstruction", "kl")
WARM_UP = 3  # steps on a side stream before the capture, as torch asks for


class Step:
    """Takes steps, and sums up what they reported.

    Args:
        vae: on its device.
        objective: on the same device.
        optimizer: over the parameters of both.
        kl: says how many bits are free, and whether the KL has a target.
        data: training examples.
        settings: see conf/trainer/default.yaml.

    Attributes:
        weight: the KL weight of the next step, [].
        target: its KL target [], or None.
        averaged: the model with averaged weights, or None.
        tracked: names of what is summed.
        sums: of it over the steps since the last `take`.
    """

    def __init__(
        self,
        *,
        vae: VAE,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        kl: Constant,
        data: Resident,
        settings: TrainerSettings,
    ):
        self.vae, self.objective, self.optimizer, self.kl, self.data = vae, objective, optimizer, kl, data
        self.settings, self.device = settings, next(vae.parameters()).device
        self.averaged = copy.deepcopy(vae).requires_grad_(False) if settings.ema else None
        self.weight = torch.zeros((), device=self.device)
        self.target = None if kl.target(0.0) is None else torch.zeros((), device=self.device)
        self.share = torch.zeros((), device=self.device)  # of the new weights in the average
        self.tracked = (*TRACKED, *objective.extra)
        self.sums = torch.zeros(len(self.tracked), device=self.device)
        self.each_sum = list(self.sums.unbind())
        self.summed = 0
        self.grad_norm = torch.zeros((), device=self.device)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._set: dict[int, float] = {}
        terms: Callable[[Tensor, Tensor | None], Terms] = self._objective
        self._terms = torch.compile(terms) if settings.compile else terms
        self.skipped = torch.zeros((), device=self.device)
        if settings.on_nan == "skip":
            if not isinstance(optimizer, Adam):
                raise UserError("trainer.on_nan=skip: needs optimizer=adam or adamw; stop or rollback is allowed")
            optimizer.found_inf = torch.zeros((), device=self.device)
        self.reset()

    def reset(self) -> None:
        """Forget what was captured: the tensors that it worked on may be others now."""
        self._set.clear()
        self._graph = Graph(self._run, min(self.settings.batch_size, len(self.data))) if self.graphs else None

    @property
    def graphs(self) -> bool:
        """Whether steps are replayed from a graph: on CUDA, with examples there, and an optimizer that can."""
        wanted = self.settings.cuda_graph
        able = self.device.type == "cuda" and self.data.resident and isinstance(self.optimizer, Adam)
        if wanted is True and not able:
            raise UserError(
                "trainer.cuda_graph=true: needs CUDA, training examples in its memory and optimizer=adam or adamw; "
                "auto or false is allowed"
            )
        return able and wanted is not False

    def __call__(self, index: Tensor, *, weight: float, target: float | None, lr: list[float], decay: float) -> None:
        """Take a step on the examples at an index [B].

        Args:
            index: of training examples.
            weight: of the KL.
            target: of the KL, or None.
            lr: a learning rate for each group of parameters.
            decay: of the average of the weights.
        """
        self._fill(self.weight, weight)
        self._fill(self.share, 1.0 - decay)
        if self.target is not None:
            self._fill(self.target, target or 0.0)
        for group, rate in zip(self.optimizer.param_groups, lr, strict=True):
            if isinstance(group["lr"], Tensor):
                self._fill(group["lr"], rate)
            else:
                group["lr"] = torch.tensor(rate, device=self.device) if self._graph else rate
        (self._graph or self._run)(index)
        self.summed += 1

    def _fill(self, tensor: Tensor, value: float) -> None:
        """Set a number on the device where it changed."""
        if self._set.get(id(tensor)) != value:
            self._set[id(tensor)] = value
            tensor.fill_(value)

    def _run(self, index: Tensor) -> None:
        x, y = self.data.batch(index)
        for parameter in self.parameters:
            parameter.grad = None
        terms = self._terms(x, y)
        terms.loss.backward()
        if self.settings.grad_clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.vae.parameters(), self.settings.grad_clip)
            self.grad_norm.copy_(norm)
        found = [getattr(terms, name).detach() for name in TRACKED]
        found += [terms.extra[name].detach() for name in self.objective.extra]
        if self.settings.on_nan == "skip":
            found = self._skip_if_infinite(found)
        self.optimizer.step()
        if self.averaged is not None:
            self._average(self.averaged)
        torch._foreach_add_(self.each_sum, found)

    @torch.no_grad()
    def _skip_if_infinite(self, found: list[Tensor]) -> list[Tensor]:
        """Tell the optimizer, without asking the device, whether to do nothing; return terms that then count as 0."""
        assert isinstance(self.optimizer, Adam)
        assert self.optimizer.found_inf is not None
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        bad = sum(found, norm).isfinite().logical_not()
        self.optimizer.found_inf.copy_(bad)
        self.skipped += bad
        return [torch.where(bad, 0.0, term) for term in found]

    def _objective(self, x: Tensor, y: Tensor | None) -> Terms:
        return self.objective(self.vae, x, y, weight=self.weight, free_bits=self.kl.free_bits, target=self.target)

    @torch.no_grad()
    def _average(self, averaged: VAE) -> None:
        """averaged ← d · averaged + (1 − d) · weights; buffers are copied."""
        mine: list[Tensor] = list(averaged.parameters())
        theirs: list[Tensor] = list(self.vae.parameters())
        torch._foreach_lerp_(mine, theirs, [self.share] * len(mine))
        for own, other in zip(averaged.buffers(), self.vae.buffers(), strict=True):
            own.copy_(other)

    def take(self) -> tuple[dict[str, float], float, float, int]:
        """Return the means since the last time, the last gradient's norm, KL weight and number of skipped steps."""
        if self.settings.grad_clip is None:
            grads = [p.grad for p in self.vae.parameters() if p.grad is not None]
            self.grad_norm.copy_(torch.nn.utils.get_total_norm(grads))
        means_now = self.sums / (self.summed - self.skipped)
        *means, norm, weight, skipped = torch.cat(
            [means_now, torch.stack([self.grad_norm, self.weight, self.skipped])]
        ).tolist()
        self.sums.zero_()
        self.skipped.zero_()
        self.summed = 0
        return dict(zip(self.tracked, means, strict=True)), norm, weight, int(skipped)


class Graph:
    """Runs a function of an index [B] a few times, then captures it in a CUDA graph and replays that.

    Args:
        run: launches kernels on static memory, and returns nothing.
        batch_size: B.
    """

    def __init__(self, run: Callable[[Tensor], None], batch_size: int):
        self.run, self.index = run, torch.zeros(batch_size, dtype=torch.int64, device="cuda")
        self.graph: torch.cuda.CUDAGraph | None = None
        self.stream, self.ran = torch.cuda.Stream(), 0

    def __call__(self, index: Tensor) -> None:
        """Run on an index of the size that all have."""
        if self.graph is None and self.ran < WARM_UP:
            self._aside(index)
            return
        self.index.copy_(index)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.run(self.index)
        self.graph.replay()

    def _aside(self, index: Tensor) -> None:
        """Run on a stream of its own, so that lazily made workspaces are there when the capture begins."""
        self.ran += 1
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.run(index)
        torch.cuda.current_stream().wait_stream(self.stream)
