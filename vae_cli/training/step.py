"""One training step as one unit: gather, transform, forward, backward, clip, optimizer, average, sums.

Nothing here waits for the device. On CUDA the whole of it is captured once in a graph and replayed: what a step costs
is then its kernels alone, not their launches from Python.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.config.run import Trainer as TrainerSettings
from vae_cli.data import Resident
from vae_cli.kl import Constant
from vae_cli.objective import Objective, Penalty, Terms
from vae_cli.optimizer import Adam
from vae_cli.system import parallel, randomness
from vae_cli.system.errors import UserError
from vae_cli.training.graph import Graph
from vae_cli.vae import VAE

TRACKED = ("loss", "elbo", "reconstruction", "kl")


class Loss(torch.nn.Module):
    """A batch's examples → its terms: what is compiled, and what several ranks share the gradient of.

    Args:
        vae: on its device.
        objective: on the same device.
        free_bits: nats of KL free of charge for each latent dimension.
        compiled: whether torch.compile shall fuse it.
    """

    def __init__(self, vae: VAE, objective: Objective, free_bits: float, *, compiled: bool):
        super().__init__()
        self.vae, self.objective, self.free_bits = vae, objective, free_bits
        self.terms: Callable[..., Terms] = torch.compile(Loss._terms) if compiled else Loss._terms

    def forward(self, batch: Batch, weight: Tensor, target: Tensor | None) -> Terms:
        """Return the terms of a batch under a KL weight [] and a KL target [] or None."""
        return self.terms(self, batch, weight, target)

    def _terms(self, batch: Batch, weight: Tensor, target: Tensor | None) -> Terms:
        return self.objective(self.vae, batch, Penalty(weight, self.free_bits, target))


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
        self.extra = (*objective.extra, *vae.latent.extra)
        self.tracked = (*TRACKED, *self.extra)
        self.sums = torch.zeros(len(self.tracked), device=self.device)
        self.each_sum = list(self.sums.unbind())
        self.summed = 0
        self.grad_norm = torch.zeros((), device=self.device)
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._set: dict[int, float] = {}
        self.loss = parallel.data_parallel(Loss(vae, objective, kl.free_bits, compiled=settings.compile), self.device)
        self.skipped = torch.zeros((), device=self.device)
        if settings.on_nan == "skip":
            if not isinstance(optimizer, Adam):
                raise UserError("trainer.on_nan=skip: needs optimizer=adam or adamw; stop or rollback is allowed")
            optimizer.found_inf = torch.zeros((), device=self.device)
        if settings.accumulate > 1:
            self._refuse_parts()
        self.reset()

    def _refuse_parts(self) -> None:
        """Refuse to add up the gradients of parts where they are not that of the whole."""
        joining = {
            "this objective": self.objective.joins,
            "kl.free_bits": self.kl.free_bits > 0.0,
            "a target of the KL": self.target is not None,
            "likelihood.scale=optimal": self.vae.likelihood.joins,
        }
        if found := [name for name, joins in joining.items() if joins]:
            raise UserError(
                f"trainer.accumulate={self.settings.accumulate}: {found[0]} joins the examples of a batch; 1 is allowed"
            )

    @property
    def evaluated(self) -> VAE:
        """The model whose numbers count: the averaged weights where there are any."""
        return self.vae if self.averaged is None else self.averaged

    def reset(self) -> None:
        """Forget what was captured: the tensors that it worked on may be others now."""
        self._set.clear()
        self._graph = Graph() if self.graphs else None

    @property
    def graphs(self) -> bool:
        """Whether steps are replayed from a graph: on CUDA, with examples there, and an optimizer that can."""
        wanted = self.settings.cuda_graph
        able = self.device.type == "cuda" and self.data.resident and isinstance(self.optimizer, Adam)
        able = able and parallel.count() == 1
        if wanted is True and not able:
            raise UserError(
                "trainer.cuda_graph=true: needs one CUDA device, training examples in its memory and optimizer=adam or "
                "adamw; auto or false is allowed"
            )
        return able and wanted is not False

    def __call__(self, index: Tensor, *, weight: float, target: float | None, lr: list[float], decay: float) -> None:
        """Take a step on the examples at an index [k, b].

        Args:
            index: of this rank's training examples, in k parts whose gradients add up.
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
        if self._graph is not None:
            self._graph(self._run, index)
        else:
            self._run(index)
        self.summed += 1

    def _fill(self, tensor: Tensor, value: float) -> None:
        """Set a number on the device where it changed."""
        if self._set.get(id(tensor)) != value:
            self._set[id(tensor)] = value
            tensor.fill_(value)

    def _run(self, index: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        buffers = [buffer.clone() for buffer in self.loss.buffers()] if self.settings.on_nan == "skip" else []
        found = self._gradient(index[0], len(index), last=len(index) == 1)
        for k in range(1, len(index)):
            torch._foreach_add_(found, self._gradient(index[k], len(index), last=k == len(index) - 1))
        if self.settings.grad_clip is not None:
            self.grad_norm.copy_(self._clip(self.settings.grad_clip))
        if self.settings.on_nan == "skip":
            found = self._skip_if_infinite(found, buffers)
        self.optimizer.step()
        if self.averaged is not None:
            self._average(self.averaged)
        torch._foreach_add_(self.each_sum, found)

    def _clip(self, most: float) -> Tensor:
        """Scale the gradient of each group of parameters down to a norm; return the norm that the model's had.

        Each by itself: a discriminator's gradient says nothing about the step that the model should take.
        """
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], most) for group in self.optimizer.param_groups]
        return norms[0]

    def _gradient(self, index: Tensor, parts: int, *, last: bool) -> list[Tensor]:
        """Add the gradient of one of so many parts of a batch, and return its share of the terms.

        With the last part, ranks share their sums.
        """
        with randomness.own_rows():
            batch = self.data.batch(index)
        with nullcontext() if last or parallel.count() == 1 else self.loss.no_sync():  # type: ignore[operator]
            terms = self.loss(batch, self.weight, self.target)
            (terms.loss / parts if parts > 1 else terms.loss).backward()
        found = [getattr(terms, name).detach() for name in TRACKED]
        found += [terms.extra[name].detach() for name in self.extra]
        return found if parts == 1 else [term / parts for term in found]

    @torch.no_grad()
    def _skip_if_infinite(self, found: list[Tensor], buffers: list[Tensor]) -> list[Tensor]:
        """Tell the optimizer, without asking the device, whether to do nothing; return terms that then count as 0.

        What the model keeps beside its weights is then as it was before the step.
        """
        assert isinstance(self.optimizer, Adam)
        assert self.optimizer.found_inf is not None
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        bad = parallel.mean(sum(found, norm)).isfinite().logical_not()
        self.optimizer.found_inf.copy_(bad)
        self.skipped += bad
        for own, before in zip(self.loss.buffers(), buffers, strict=True):
            own.copy_(torch.where(bad, before, own))
        return [torch.where(bad, 0.0, term) for term in found]

    @torch.no_grad()
    def _average(self, averaged: VAE) -> None:
        """averaged ← d · averaged + (1 − d) · weights, but after a step that was skipped; buffers are copied."""
        bad = getattr(self.optimizer, "found_inf", None)
        share = self.share if bad is None else self.share * (1.0 - bad)
        mine: list[Tensor] = list(averaged.parameters())
        theirs: list[Tensor] = list(self.vae.parameters())
        torch._foreach_lerp_(mine, theirs, [share] * len(mine))
        for own, other in zip(averaged.buffers(), self.vae.buffers(), strict=True):
            own.copy_(other)

    def take(self) -> tuple[dict[str, float], float, float, int]:
        """Return the means since the last time, the last gradient's norm, KL weight and number of skipped steps.

        The means are those of all ranks; there are none where every step was skipped.
        """
        if self.settings.grad_clip is None:
            grads = [p.grad for p in self.vae.parameters() if p.grad is not None]
            self.grad_norm.copy_(torch.nn.utils.get_total_norm(grads))
        means_now = parallel.mean(self.sums) / (self.summed - self.skipped)
        *means, norm, weight, skipped = torch.cat(
            [means_now, torch.stack([self.grad_norm, self.weight, self.skipped])]
        ).tolist()
        named = {} if skipped == self.summed else dict(zip(self.tracked, means, strict=True))
        self.sums.zero_()
        self.skipped.zero_()
        self.summed = 0
        return named, norm, weight, int(skipped)
