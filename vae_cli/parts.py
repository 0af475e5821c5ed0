"""From a configuration to its parts, and from a run folder to its parts again."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from vae_cli.config.options import SHARED, targets
from vae_cli.config.run import Config
from vae_cli.config.signatures import signature
from vae_cli.config.types import Part
from vae_cli.data import Dataset, Spec, load
from vae_cli.latent import Encoder, Latent
from vae_cli.likelihood.support import Support
from vae_cli.system.errors import UserError, first_line, suggest
from vae_cli.vae import VAE

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
        encoder = Encoder(model, likelihood.shown, latent, missing=spec.missing)
        return assemble("prior", config.prior, encoder=encoder, **facts, **more)

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
        missing=spec.missing,
    )


def _called(function: Callable[..., Any], **offered: Any) -> Any:
    """Call a function with those of the offered arguments that it names."""
    named = inspect.signature(function).parameters
    return function(**{key: value for key, value in offered.items() if key in named})


def own_parts(config: Config) -> list[str]:
    """Return the parts of a configuration that are not vae_cli's own, each as group=name."""
    return [
        f"{group}={name_of(group, part)}" for group, part in config.parts.items() if part.target not in targets(group)
    ]


def name_of(group: str, part: Part) -> str:
    """Return the name of the option that a part is; of a user's own, that of its class or function."""
    return targets(group).get(part.target) or part.target.rsplit(".", 1)[-1]
