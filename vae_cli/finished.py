"""From a run folder to its parts again."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.module import register_module_buffer_registration_hook as buffer_registered
from torch.nn.modules.module import register_module_parameter_registration_hook as parameter_registered

from vae_cli.config import PATHS, differing, modernise_state, require_run, stays, validate
from vae_cli.config.run import Config
from vae_cli.config.stored import stored
from vae_cli.config.trust import command, foreign
from vae_cli.data import Dataset, Resident, Spec
from vae_cli.parts import build, load_dataset
from vae_cli.system import checkpoint
from vae_cli.system.disk import SETTINGS
from vae_cli.system.errors import UserError
from vae_cli.vae import VAE

Trust = bool | Sequence[str]
Places = str | Mapping[str, str] | None
SAME = ("shape", "levels", "names", "attributes", "dequantized", "train", "valid", "test", "mean", "std",
        "center", "spread", "train examples", "valid examples", "test examples")  # fmt: skip
ROOM, SMALL = 4, 10**7  # a model being built holds at most so many times the numbers of its weights, and so many more


@dataclass(frozen=True)
class Restored:
    """A finished run: its settings, its model with the weights its numbers come from, and what its data were."""

    config: Config
    vae: VAE
    spec: Spec
    about: dict[str, Any]  # shape, levels, … and the number of examples of each split
    step: int | None  # that the weights are of


def settings_of(folder: Path, *, trust: Trust = False, data: Places = None) -> Config:
    """Return the configuration that a run folder was trained with.

    Args:
        folder: of the run.
        trust: whose parts may be built besides vae_cli's own: packages by name, or true for all. Their code would run.
        data: where the data are now: in place of the run's data.path or data.root, or of each setting that is named.

    Raises:
        UserError: there is no run, its settings cannot be read, or they name foreign parts.
    """
    require_run(folder)
    path = folder / SETTINGS
    raw = stored(folder)
    for group, content in raw.items():
        if target := foreign(group, content, trust):
            package = target.partition(".")[0]
            raise UserError(
                f"{group}._target_={target}: not a part of vae_cli; trust=[{package}] runs it, if you trust {folder}"
            )
    if key := command(raw["data"], trust):
        raise UserError(f"data.{key}={raw['data'][key]}: a command; trust=[pipe] lets it run, if you trust {folder}")
    try:
        return _with_data(raw, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _with_data(raw: dict[str, Any], data: Places) -> Config:
    """Type settings whose data may have moved, or be out of reach: a model needs none."""
    key = "root" if "root" in raw["data"] else "path"
    moved = {key: data} if isinstance(data, str) else data or {}
    if unknown := [each for each in moved if each not in raw["data"]]:
        known = ", ".join(f"data.{each}" for each in PATHS if each in raw["data"])
        raise UserError(f"data.{unknown[0]}: no setting of the run's data (allowed: {known or 'none'})")
    places = {each: os.path.abspath(where) for each, where in moved.items()}
    where = {each: place for each, place in ({key: raw["data"].get(key)} | places).items() if place is not None}
    config = validate({**raw, "data": {**raw["data"], **dict.fromkeys(where, ".")}})
    return config.model_copy(update={"data": config.data.model_copy(update=where)})


def restore(folder: Path, device: torch.device, *, trust: Trust = False, data: Places = None) -> Restored:
    """Rebuild the model of a finished run with the weights that its numbers come from, in evaluation mode.

    Raises:
        UserError: there is no run, it names foreign parts, or its weights do not fit its configuration.
    """
    config = settings_of(folder, trust=trust, data=data)
    best = folder / "checkpoints" / "best.pt"
    path = folder / "checkpoints" / "last.pt" if config.trainer.final == "last" or not best.is_file() else best
    state = checkpoint.load(path, device)
    with checkpoint.fitting(path):
        refuse_others(path, state, config)
        state = modernise_state(state)
        step, spec, weights = checkpoint.count_in(state, "step"), Spec.from_dict(state["spec"]), _weights(state)
        with _no_larger_than(weights):
            vae = build(config, spec).to(device)
        vae.load_state_dict(weights)
        about = about_data(state)
    return Restored(config, vae.eval().requires_grad_(False), spec, about, step)


def _weights(state: dict[str, Any]) -> dict[str, Any]:
    return state.get("averaged") or state["model"]


@contextmanager
def _no_larger_than(weights: dict[str, Any]) -> Iterator[None]:
    """Within the block refuse to build modules of far more numbers than some weights, before memory is filled.

    Raises:
        RuntimeError: settings, or a description of the data, ask for such.
    """
    left = [ROOM * sum(each.numel() for each in weights.values()) + SMALL]

    def count(module: torch.nn.Module, name: str, value: torch.Tensor | None) -> None:
        left[0] -= 0 if value is None else value.numel()
        if value is not None and left[0] < 0:
            raise RuntimeError(f"the model would be far larger than its weights, {name} alone {list(value.shape)}")

    hooks = [register(count) for register in (parameter_registered, buffer_registered)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def describe(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Return what a checkpoint says about the data."""
    return {"spec": dataset.spec.to_dict(), "sizes": dataset.sizes, "examples": dataset.examples}


def about_data(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint tells of the data, as `changed` compares it."""
    return {**state["spec"], **state["sizes"], **state["examples"]}


def refuse_others(path: Path, state: dict[str, Any], config: Config) -> None:
    """Refuse a checkpoint of another run than the one whose settings are given, by the first setting that differs.

    Raises:
        UserError: names it.
    """
    for key, (then, now) in differing(state.get("config", config.plain), config.plain).items():
        if stays(key):
            raise UserError(f"{path}: of another run, which had {key}={then}; this one has {now}")


def data_of(run: Restored, folder: Path) -> Dataset:
    """Load the data of a finished run.

    Raises:
        UserError: they are not those it was trained on.
    """
    dataset = load_dataset(run.config)
    if change := changed(run.about, dataset):
        raise UserError(f"run={folder}: the data changed since the run ({change}); data.path says where its own are")
    return dataset


def changed(then: dict[str, Any], dataset: Dataset, word: str = "now") -> str | None:
    """Say how data differ from those a checkpoint, or another rank, tells of; None where they do not.

    Args:
        then: what `about_data` returned.
        dataset: to compare with it.
        word: what stands before a value of `dataset`.
    """
    now = about_data(describe(dataset))
    for key in SAME:
        if key in then and not _equal(then[key], now.get(key)):
            many = key in ("mean", "std", "center", "spread", *dataset.examples)  # too many numbers to show
            return key if many else f"{key}: {then[key]}, {word} {now.get(key)}"
    return None


def _equal(then: Any, now: Any) -> bool:
    """Compare what a checkpoint says with what is there; statistics up to rounding."""
    if isinstance(then, list) and isinstance(now, list) and then and isinstance(then[0], float):
        return len(then) == len(now) and all(
            math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-6) for a, b in zip(then, now, strict=True)
        )
    return then == now


def split_of(dataset: Dataset, split: str, device: torch.device, seed: int) -> Resident:
    """Return a split as an evaluation sees it: every random draw made once.

    Raises:
        UserError: there are no such examples.
    """
    if split == "train":
        return dataset.fixed_train(device, len(dataset.train), seed=seed)
    found = dataset.resident(split, device) if split in ("valid", "test") else None
    if found is None:
        raise UserError(f"split={split}: the run has no such examples ({', '.join(dataset.sizes)} are allowed)")
    return found
