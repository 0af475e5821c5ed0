"""From a configuration to its parts, and from a run folder to its parts again."""

from __future__ import annotations

import importlib
import inspect
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.nn.modules.module import register_module_buffer_registration_hook as buffer_registered
from torch.nn.modules.module import register_module_parameter_registration_hook as parameter_registered

from vae_cli import checkpoint
from vae_cli.config import PATHS, differing, require_run, stays, stored, validate
from vae_cli.config.options import SHARED, targets
from vae_cli.config.run import Config
from vae_cli.config.signatures import signature
from vae_cli.config.trust import command, foreign
from vae_cli.config.types import Part
from vae_cli.data import Dataset, Resident, Spec, load
from vae_cli.disk import SETTINGS
from vae_cli.errors import UserError, first_line, suggest
from vae_cli.latent import Encoder, Latent
from vae_cli.likelihood.support import Support
from vae_cli.vae import VAE

Trust = bool | Sequence[str]
Places = str | Mapping[str, str] | None
SAME = ("shape", "levels", "names", "attributes", "dequantized", "train", "valid", "test", "mean", "std",
        "center", "spread", "train examples", "valid examples", "test examples")  # fmt: skip
ROOM, SMALL = 4, 10**7  # a model being built holds at most so many times the numbers of its weights, and so many more
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def find(group: str, part: Part) -> Callable[..., Any]:
    """Return the class or function that a part names.

    Raises:
        UserError: it cannot be imported.
    """
    module, _, name = part.target.rpartition(".")
    try:
        holder = importlib.import_module(module)
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        root = module.partition(".")[0]
        absent = isinstance(error, ModuleNotFoundError) and error.name == root
        hint = f"; give the folder that holds {root} with --config-dir, in Python by sys.path.append" if absent else ""
        raise UserError(f"{group}._target_={part.target}: cannot be imported ({reason}){hint}") from error
    if not hasattr(holder, name):
        raise UserError(f"{group}._target_={part.target}: {module} has no {name}{suggest(name, dir(holder))}")
    return getattr(holder, name)


def assemble(group: str, part: Part, **offered: Any) -> Any:
    """Build a part from its settings and from those of the offered facts that its constructor names.

    Raises:
        UserError: the part cannot be imported, does not know one of its settings, lacks one or refuses one.
    """
    kind = find(group, part)
    named = inspect.signature(kind).parameters
    shared = signature(SHARED[group]).parameters if group in SHARED else {}
    given = {key: value for key, value in part.settings.items() if key in named or key not in {**shared, **offered}}
    arguments = {key: value for key, value in offered.items() if key in named} | given
    if unknown := [key for key in given if key not in named]:
        allowed = ", ".join(f"{group}.{name}" for name in named if name not in offered)
        raise UserError(f"{group}.{unknown[0]}: no setting of {part.target} (allowed: {allowed or 'none'})")
    required = [name for name, parameter in named.items() if parameter.default is parameter.empty]
    if missing := [name for name in required if name not in arguments and named[name].kind in NAMED]:
        raise UserError(f"{group}.{missing[0]}: required by {part.target}; nothing was given")
    try:
        return kind(**arguments)
    except (ValueError, OverflowError) as error:
        raise UserError(f"{group}: {part.target} refuses its settings ({first_line(error)})") from error


def load_dataset(config: Config) -> Dataset:
    """Load the data of a configuration, split and checked against its likelihood."""
    source = assemble("data", config.data)
    every = signature(SHARED["data"]).parameters
    settings = {key: value for key, value in config.data.settings.items() if key in every}
    support = getattr(find("likelihood", config.likelihood), "support", None)
    if not isinstance(support, Support):
        raise UserError(f"likelihood={config.likelihood.target}: its `support` is a vae_cli.likelihood.support.Support")
    return load(source, support=support, option=name_of("likelihood", config.likelihood), **settings)


def build(config: Config, spec: Spec) -> VAE:
    """Build the model of a configuration for data of that kind, with fresh weights."""
    latent_dim, kind = config.model.latent_dim, cast(Any, find("latent", config.latent))
    conditioning = assemble("conditional", config.conditional, classes=spec.classes, attributes=spec.attributes)
    likelihood = assemble(
        "likelihood", config.likelihood, levels=spec.levels, shape=spec.shape, condition_dim=conditioning.dim,
        center=spec.center, spread=spec.spread,
    )  # fmt: skip
    model = assemble(
        "model",
        config.model,
        shape=spec.shape,
        shown=likelihood.shown_shape(spec.shape, missing=spec.missing),
        latent_shape=_called(kind.decoded_shape, latent_dim=latent_dim, **config.latent.settings),
        condition_dim=conditioning.dim,
        outputs=likelihood.outputs,
    )
    facts = {"condition_dim": conditioning.dim, "shape": spec.shape, "low": spec.low, "high": spec.high}

    def prior(latent: Latent, **more: Any) -> Any:
        return assemble("prior", config.prior, encoder=Encoder(model, likelihood.shown, latent), **facts, **more)

    latent = assemble(
        "latent",
        config.latent,
        model=model,
        latent_dim=latent_dim,
        posterior=partial(assemble, "posterior", config.posterior),
        prior=prior,
    )
    return VAE(
        model=model,
        latent=latent,
        likelihood=likelihood,
        conditioning=conditioning,
        shape=spec.shape,
        log_std=spec.log_std,
    )


def _called(function: Callable[..., Any], **offered: Any) -> Any:
    """Call a function with those of the offered arguments that it names."""
    named = inspect.signature(function).parameters
    return function(**{key: value for key, value in offered.items() if key in named})


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


def own_parts(config: Config) -> list[str]:
    """Return the parts of a configuration that are not vae_cli's own, each as group=name."""
    return [
        f"{group}={name_of(group, part)}" for group, part in config.parts.items() if part.target not in targets(group)
    ]


def told_of(dataset: Dataset) -> dict[str, dict[str, Any]]:
    """Return what a checkpoint is to tell of the data."""
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
    now = about_data(told_of(dataset))
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


def name_of(group: str, part: Part) -> str:
    """Return the name of the option that a part is; of a user's own, that of its class or function."""
    return targets(group).get(part.target) or part.target.rsplit(".", 1)[-1]
