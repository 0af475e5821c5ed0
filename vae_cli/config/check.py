"""From a composed configuration to typed settings, or to one line that names what is wrong. No torch here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError, create_model

from vae_cli.config import rules, signatures
from vae_cli.config.commands import Evaluate
from vae_cli.config.earlier import modernise
from vae_cli.config.options import GROUPS, MADE, NOT_SETTINGS, OFFERED, SHARED, targets
from vae_cli.config.run import Config, Trainer
from vae_cli.config.signatures import signature
from vae_cli.config.types import OpenPart, Part
from vae_cli.config.words import CONF, OVERLAYS, unknown_setting
from vae_cli.system.errors import UserError


def validate(raw: Mapping[str, Any]) -> Config:
    """Check a composed configuration and return it typed.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type, out of range or without effect.
    """
    raw = modernise(raw)
    parts = {group: check_part(group, raw) for group in GROUPS if group in raw}
    trainer = check(Trainer, raw.get("trainer"), "trainer.")
    config = check(Config, {**raw, **parts, "trainer": trainer}, "")
    rules.refuse(config)
    return config


def validate_evaluate(raw: Any) -> Evaluate:
    """Check the settings of vae-eval and return them typed.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type or out of range.
    """
    return check(Evaluate, raw, "")


def check_part(group: str, raw: Mapping[str, Any]) -> Any:
    """Return the settings of the option that was chosen of a group, typed by the signature of what it names.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type or out of range.
    """
    content = raw[group]
    if not isinstance(content, Mapping) or not isinstance(content.get("_target_"), str):
        raise UserError(f"{group}: one option with a _target_ is required; conf/{group} has them")
    target = content["_target_"]
    if target not in targets(group) and target.startswith("vae_cli."):
        raise UserError(f"{group}._target_={target}: no such part of vae_cli")
    return check(schema(group, target), content, f"{group}.")


@cache
def schema(group: str, target: str) -> type[Part]:
    """Return the typed settings of a part: those that its signature names, and those that its whole group has."""
    own = signature(target)
    shared = signature(SHARED[group]).parameters if group in SHARED else {}
    shared = {name: each for name, each in shared.items() if name not in NOT_SETTINGS}
    made = [signature(maker).parameters for name, maker in MADE.get(group, {}).items() if name in own.parameters]
    named = {**shared, **own.parameters, **{name: each for settings in made for name, each in settings.items()}}
    fields: dict[str, Any] = {
        name: (each.type, ... if each.required else None)
        for name, each in named.items()
        if name not in OFFERED[group] or name in shared
    }
    return create_model("Settings", __base__=Part if own.closed else OpenPart, **fields)


def forget() -> None:
    """Read the sources of parts anew: the folders where modules are found have changed."""
    schema.cache_clear()
    signatures.forget()


def setting_names(group: str, target: str) -> list[str]:
    """Return the settings that a part has."""
    return [name for name in schema(group, target).model_fields if name != "target"]


def compose(*overrides: str) -> Config:
    """Compose the settings that `vae-train OVERRIDES` would run with, in this process."""
    from hydra import compose as composed
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    import vae_cli.config.resolvers  # noqa: F401  registers what options may refer to

    with initialize_config_dir(CONF, version_base="1.3"):
        raw = OmegaConf.to_container(composed("train", list(overrides)), resolve=True, throw_on_missing=True)
    assert isinstance(raw, dict)
    return validate({str(key): value for key, value in raw.items() if key not in (*OVERLAYS, "hydra")})


def check(schema: type[BaseModel], content: Any, prefix: str) -> Any:
    """Return content typed by a schema; raise the one line that names the first setting that is wrong."""
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise UserError(_describe(error, content, prefix)) from None


def _describe(error: ValidationError, content: Any, prefix: str) -> str:
    """One line for the first faulty setting: its key, what was given, what is allowed."""
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    name = str(first["loc"][0]) if first["loc"] else ""
    key = f"{prefix}{name}".rstrip(".")
    if first["type"] in ("extra_forbidden", "none_required"):
        return _unknown(key, content)
    if first["type"] == "missing":
        return f"{key}: required; nothing was given"
    same = [p for p in problems if p["loc"][:1] == first["loc"][:1]]
    wanted = " or ".join(dict.fromkeys(_wanted(problem) for problem in same))
    given = content.get(name) if isinstance(content, Mapping) else content
    shown = str(given).lower() if isinstance(given, bool) else "null" if given is None else given
    if first["type"] == "list_type" and given is not None:
        return f"{key}={shown}: {wanted} is allowed (write [{given}])"
    if isinstance(given, str) and any(number in wanted for number in ("an integer", "a number")) and _is_number(given):
        return f"{key}='{shown}': a text; {wanted} is allowed (of the environment: ${{oc.decode:${{oc.env:NAME}}}})"
    return f"{key}={shown}: {wanted} is allowed"


def _is_number(text: str) -> bool:
    return isinstance(yaml.safe_load(text) if re.fullmatch(r"[-+.\de]+", text) else None, (int, float))


def _wanted(problem: Any) -> str:
    """Return what is allowed, in few words."""
    limits = problem.get("ctx", {})
    for limit, words in (("min_length", "at least"), ("max_length", "at most")):
        if limit in limits:
            return f"a list of {words} {limits[limit]}"
    for limit, sign in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if limit in limits:
            return f"{sign} {limits[limit]:g}"
    kinds = {"int": "an integer", "float": "a number", "bool": "true or false", "string": "a text", "list": "a list"}
    text = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return kinds.get(problem["type"].split("_")[0], text)


def _unknown(key: str, content: Any) -> str:
    """Return that a setting does not exist; for a user's own part, which settings it has."""
    group, _, name = key.partition(".")
    target = content.get("_target_") if isinstance(content, Mapping) else None
    if not name or group not in GROUPS or not target or target in targets(group):
        return unknown_setting(key)
    allowed = ", ".join(f"{group}.{each}" for each in setting_names(group, target))
    return f"{key}: no setting of {target} (allowed: {allowed or 'none'})"
