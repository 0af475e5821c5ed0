"""The optimizers. Adam and AdamW call the fused kernel directly: torch's wrapper dominates small models."""

from __future__ import annotations

import inspect
from typing import Any, cast

import torch
from torch import Tensor

from vae_cli.config.types import Betas, Momentum, NonNegative, Positive

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]  # parameters, their averages, squares, steps


class Adam(torch.optim.Adam):
    """torch.optim.Adam (Kingma & Ba 2015), with the same steps; its lists of tensors are gathered once.

    State and settings are torch's own: checkpoints load either way.

    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = Adam([w], lr=0.1, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, fused=True)
    >>> w.square().sum().backward()
    >>> optimizer.step()
    >>> [round(each, 4) for each in w.tolist()]  # the first step has the length lr
    [0.9, 0.9, 0.9]
    """

    straight = torch._fused_adam_
    decoupled = False

    def __init__(
        self,
        params: Any,
        *,
        lr: Positive,
        betas: Betas,
        eps: Positive,
        weight_decay: NonNegative,
        fused: bool,
    ):
        super().__init__(
            params, lr, (betas[0], betas[1]), eps, weight_decay, fused=fused, decoupled_weight_decay=self.decoupled
        )
        self._gathered: list[Lists] | None = None
        self.found_inf: Tensor | None = None  # where it is 1, a step changes nothing

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters without torch's wrapper, which would import the compiler: seconds of a short run."""
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, without the same wrapper."""
        return inspect.unwrap(torch.optim.Optimizer.state_dict)(self)

    def load_state_dict(self, state_dict: Any) -> None:
        """Load a state; its tensors replace the gathered ones."""
        inspect.unwrap(torch.optim.Optimizer.load_state_dict)(self, state_dict)
        self._gathered = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step with the parameters that have a gradient."""
        for group, (params, averages, squares, steps) in zip(self.param_groups, self._lists(), strict=True):
            if not params:
                continue
            torch._foreach_add_(steps, 1)
            grads = cast(list[Tensor], [p.grad for p in params])
            type(self).straight(
                params, grads, averages, squares, [], steps, amsgrad=False, lr=group["lr"],
                beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], maximize=False, found_inf=self.found_inf,
            )  # fmt: skip
            if self.found_inf is not None:
                torch._foreach_sub_(steps, [self.found_inf] * len(steps))

    step.hooked = True  # type: ignore[attr-defined]  # torch wraps each step in a profiler's record otherwise

    def _lists(self) -> list[Lists]:
        """Return each group's lists; they are kept from step to step where every parameter has a gradient."""
        kept = self._gathered
        if kept is not None and all(p.grad is not None for lists in kept for p in lists[0]):
            return kept
        found = [self._gather(group) for group in self.param_groups]
        whole = all(
            len(lists[0]) == len(group["params"]) for lists, group in zip(found, self.param_groups, strict=True)
        )
        self._gathered = found if whole else None
        return found

    def _gather(self, group: dict[str, Any]) -> Lists:
        """Return a group's parameters that have a gradient, and their state, made where there is none yet."""
        params = [p for p in group["params"] if p.grad is not None]
        for p in params:
            if not self.state[p]:
                self.state[p] |= {"step": torch.zeros((), device=p.device), "exp_avg": torch.zeros_like(p)}
                self.state[p] |= {"exp_avg_sq": torch.zeros_like(p)}
        averages, squares, steps = ([self.state[p][key] for p in params] for key in ("exp_avg", "exp_avg_sq", "step"))
        return params, averages, squares, steps


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019).

    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = AdamW([w], lr=0.1, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.5, fused=True)
    >>> w.square().sum().backward()
    >>> optimizer.step()
    >>> [round(each, 4) for each in w.tolist()]  # w (1 − 0.1 · 0.5) − lr
    [0.85, 0.85, 0.85]
    """

    straight = torch._fused_adamw_
    decoupled = True


class Adamax(torch.optim.Adamax):
    """torch.optim.Adamax (Kingma & Ba 2015, algorithm 2).

    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = Adamax([w], lr=0.1, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0)
    >>> w.square().sum().backward()
    >>> _ = optimizer.step()
    >>> [round(each, 4) for each in w.tolist()]
    [0.9, 0.9, 0.9]
    """

    def __init__(self, params: Any, *, lr: Positive, betas: Betas, eps: Positive, weight_decay: NonNegative):
        super().__init__(params, lr, (betas[0], betas[1]), eps, weight_decay)


class SGD(torch.optim.SGD):
    """torch.optim.SGD, fused.

    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> optimizer = SGD([w], lr=0.1, momentum=0.0, nesterov=False, weight_decay=0.0, fused=True)
    >>> w.square().sum().backward()
    >>> _ = optimizer.step()
    >>> [round(each, 4) for each in w.tolist()]  # w − lr · 2w
    [0.8, 0.8, 0.8]
    """

    def __init__(
        self, params: Any, *, lr: Positive, momentum: Momentum, nesterov: bool, weight_decay: NonNegative, fused: bool
    ):
        super().__init__(params, lr, momentum, weight_decay=weight_decay, nesterov=nesterov, fused=fused)
