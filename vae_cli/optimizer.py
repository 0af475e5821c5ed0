"""Adam and AdamW whose fused step is called straight: what torch's wrapper does around it costs small models dear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Adam(torch.optim.Adam):
    """torch.optim.Adam, step for step (Kingma & Ba 2015), its lists of tensors gathered once.

    State and settings are torch's own: checkpoints load either way.
    """

    straight = torch._fused_adam_
    decoupled = False

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        weight_decay: float,
        fused: bool,
    ):
        super().__init__(
            params, lr, (betas[0], betas[1]), eps, weight_decay, fused=fused, decoupled_weight_decay=self.decoupled
        )
        self._gathered: list[tuple[Any, ...]] | None = None

    def load_state_dict(self, state_dict: Any) -> None:
        """Go on from a state; its tensors are others than before."""
        super().load_state_dict(state_dict)
        self._gathered = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take one step. The first makes the state; where a parameter has no gradient, torch's own does it."""
        grads = [[p.grad for p in group["params"]] for group in self.param_groups]
        if self._gathered is None or any(grad is None for each in grads for grad in each):
            super().step(closure)
            self._gathered = self._gather() if all(g["fused"] for g in self.param_groups) else None
            return
        for group, each, (params, averages, squares, steps) in zip(
            self.param_groups, grads, self._gathered, strict=True
        ):
            torch._foreach_add_(steps, 1)
            type(self).straight(
                params, each, averages, squares, [], steps, amsgrad=False, lr=group["lr"],
                beta1=group["betas"][0], beta2=group["betas"][1], weight_decay=group["weight_decay"],
                eps=group["eps"], maximize=False,
            )  # fmt: skip

    step.hooked = True  # type: ignore[attr-defined]  # torch wraps each step in a profiler's record otherwise

    def _gather(self) -> list[tuple[Any, ...]] | None:
        groups = [group["params"] for group in self.param_groups]
        if any("exp_avg" not in self.state[p] for params in groups for p in params):
            return None
        names = ("exp_avg", "exp_avg_sq", "step")
        return [(params, *([self.state[p][name] for p in params] for name in names)) for params in groups]


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    straight = torch._fused_adamw_
    decoupled = True
