"""What training goes on from: how far a run is, and every part with a state of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vae_cli.lr_schedule import ConstantLR
from vae_cli.report import Reporter, Silent
from vae_cli.system import parallel, randomness
from vae_cli.system.checkpoint import count_in
from vae_cli.training.step import Step


class State:
    """How far a run is, and what a checkpoint holds of it.

    Args:
        stepper: holds the model, the objective and the optimizer.
        lr_schedule: of the learning rate; it may depend on what it saw.
        reporter: whose warnings belong to the run.

    Attributes:
        step: steps taken.
        seconds: of training, those before a resumption included.
        best: the best weights so far (model, score, step, epoch), or None.
        best_is_new: whether they are not on disk yet.
        waited: validations since the best one.
        given_up: whether trainer.prune has ended the run.
        rollbacks: times that the run went back to an earlier state.
        skipped_in_row: steps in a row that were skipped, as of the last log.
        saved_step: step of the last checkpoint, or None.
    """

    def __init__(self, stepper: Step, lr_schedule: ConstantLR, reporter: Reporter | Silent):
        self.stepper, self.lr_schedule, self.reporter = stepper, lr_schedule, reporter
        self.step, self.seconds = 0, 0.0
        self.best: dict[str, Any] | None = None
        self.best_is_new, self.waited = False, 0
        self.given_up = False
        self.rollbacks, self.skipped_in_row = 0, 0
        self.saved_step: int | None = None

    def observe(self, score: float, epoch: float) -> None:
        """Take note of a validation's score, and keep the weights where it is the best one."""
        self.lr_schedule.observe(score)
        self.waited += 1
        if self.best is None or score > self.best["score"]:
            weights = {name: value.detach().clone() for name, value in self.stepper.evaluated.state_dict().items()}
            self.best = {"model": weights, "score": score, "step": self.step, "epoch": epoch}
            self.best_is_new, self.waited = True, 0

    def saved(self) -> None:
        """All of it is on disk now."""
        self.best_is_new, self.saved_step = False, self.step

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training goes on from."""
        stepper = self.stepper
        return {
            "model": stepper.vae.state_dict(),
            "averaged": None if stepper.averaged is None else stepper.averaged.state_dict(),
            "objective": stepper.objective.state_dict(),
            "optimizer": stepper.optimizer.state_dict(),
            "lr_schedule": self.lr_schedule.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "best_score": None if self.best is None else self.best["score"],
            "waited": self.waited,
            "given_up": self.given_up,
            "rollbacks": self.rollbacks,
            "in_vain": self.skipped_in_row,
            "warnings": list(self.reporter.warnings),
            "sums": parallel.gather(stepper.sums[None]),  # [N, T] of N ranks: added up later, they round as now
            "summed": stepper.summed,
            "skipped": stepper.skipped,
            "random": randomness.state_dict(stepper.device),
        }

    def resume(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Go on from a checkpoint."""
        self.load_state_dict(state, best)
        self.saved_step = self.step

    def load_state_dict(self, state: dict[str, Any], best: dict[str, Any] | None) -> None:
        """Go on from where `state_dict` was taken."""
        self._load_parts(state)
        self.step, self.waited = count_in(state, "step"), count_in(state, "waited")
        self.seconds, self.given_up = float(state["seconds"]), bool(state["given_up"])
        self.best = None if best is None else self._no_later_than_now(best, state["best_score"])
        self.rollbacks, self.skipped_in_row = count_in(state, "rollbacks"), count_in(state, "in_vain")
        self.reporter.warnings += [line for line in map(str, state["warnings"]) if line not in self.reporter.warnings]
        randomness.load_state_dict(state["random"], self.stepper.device)

    def _load_parts(self, state: dict[str, Any]) -> None:
        stepper = self.stepper
        stepper.vae.load_state_dict(state["model"])
        if stepper.averaged is not None:
            stepper.averaged.load_state_dict(state["averaged"] or state["model"])
        stepper.objective.load_state_dict(state["objective"])
        stepper.optimizer.load_state_dict(state["optimizer"])
        self.lr_schedule.load_state_dict(state["lr_schedule"])
        stepper.reset()
        stepper.sums.copy_(own_sums(torch.atleast_2d(state["sums"])))
        stepper.skipped.copy_(state["skipped"])
        stepper.summed = count_in(state, "summed")

    def _no_later_than_now(self, best: dict[str, Any], score: Any) -> dict[str, Any]:
        """Return the best state, with the score of then where it is newer than the last state.

        A run killed between the writes of best.pt and last.pt leaves such a one.
        """
        best = best | {"score": float(best["score"]), "step": count_in(best, "step"), "epoch": float(best["epoch"])}
        if best["step"] > self.step:
            best["score"] = -math.inf if score is None else float(score)
        return best


def own_sums(sums: Tensor) -> Tensor:
    """Return this rank's sums [T] of those of all ranks [N, T]; where there were more or fewer, their mean."""
    return sums[parallel.rank()] if len(sums) == parallel.count() else sums.mean(0)
