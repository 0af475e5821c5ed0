"""From a composed configuration to typed settings, or to one line that names what is wrong. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from vae_cli.errors import UserError, unknown_setting
from vae_cli.schema import OPTIONS, Config, Part, Trainer


def validate(raw: Mapping[str, Any]) -> Config:
    """Check a composed configuration and return it typed.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type, out of range or without effect.
    """
    parts = {group: _check(_schema(group, raw), raw[group], f"{group}.") for group in OPTIONS if group in raw}
    trainer = _check(Trainer, raw.get("trainer"), "trainer.")
    config = _check(Config, {**raw, **parts, "trainer": trainer}, "")
    _refuse_without_effect(config)
    return config


def _schema(group: str, raw: Mapping[str, Any]) -> type[Part]:
    content = raw[group]
    if not isinstance(content, Mapping) or not isinstance(content.get("_target_"), str):
        raise UserError(f"{group}: one option with a _target_ is required; conf/{group} has them")
    target = content["_target_"]
    if target not in OPTIONS[group] and target.startswith("vae_cli."):
        raise UserError(f"{group}._target_={target}: no such part of vae_cli")
    return OPTIONS[group].get(target, OPTIONS[group][""])


def _check(schema: type[BaseModel], content: Any, prefix: str) -> Any:
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
        return unknown_setting(key)
    if first["type"] == "missing":
        return f"{key}: required; nothing was given"
    same = [p for p in problems if p["loc"][:1] == first["loc"][:1]]
    wanted = " or ".join(dict.fromkeys(_wanted(problem) for problem in same))
    given = content.get(name) if isinstance(content, Mapping) else content
    shown = str(given).lower() if isinstance(given, bool) else "null" if given is None else given
    hint = f" (write [{given}])" if first["type"] == "list_type" and given is not None else ""
    return f"{key}={shown}: {wanted} is allowed{hint}"


def _wanted(problem: Any) -> str:
    """Say what would have been right, in few words."""
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


def _refuse_without_effect(config: Config) -> None:
    """Refuse settings that the chosen parts would ignore."""
    discrete = ("Bernoulli", "DiscretizedLogistic", "Categorical")
    likelihood = config.likelihood.target.removeprefix("vae_cli.likelihood.")
    if config.data.dequantize and likelihood in discrete:
        raise UserError(
            f"data.dequantize=true: has no effect with a likelihood over discrete values ({likelihood}); "
            "it is for continuous_bernoulli, gaussian and laplace"
        )
    if config.data.dequantize and config.data.binarize not in ("auto", "none"):
        raise UserError(
            f"data.dequantize=true: contradicts data.binarize={config.data.binarize}; auto or none is allowed"
        )
    if config.data.valid == 0 and config.trainer.early_stopping:
        raise UserError("trainer.early_stopping: has no effect with data.valid=0; give validation examples")
    if config.data.valid == 0 and config.lr_schedule.target.endswith("PlateauLR"):
        raise UserError("lr_schedule=plateau: has no effect with data.valid=0; give validation examples")
