"""What cannot be together. No torch here.

Parts state facts of themselves as plain class attributes, which subclasses inherit, a user's own as well:

    gives = ("factorised",)             facts that others may need or refuse
    needs = {"labels": "needs labels"}  facts that some chosen part must give, each with the reason
    refuses = {"mass": "…"}             facts that no chosen part may give
    ignores = ("kl.free_bits", "target")  settings, or facts of other parts, that have no effect with this part

A reason may hold only under conditions: {"eager": ("its hook is lost", {"objective.gradient": ["dreg"]})}, and may
name what was chosen: {latent} becomes latent=ladder. Nothing here knows a part by its name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vae_cli.config.options import GROUPS, option_of, targets
from vae_cli.config.run import Config
from vae_cli.config.signatures import signature
from vae_cli.system.errors import UserError

SEES = "sees x"  # the fact of a likelihood whose network is given x, all of it
TWO_DIMENSIONS, VALIDATION, EAGER = "two dimensions", "validation", "eager"  # facts that settings give
MISSING = "missing values"  # likewise
BY_SETTINGS = {
    TWO_DIMENSIONS: "model.latent_dim=2 or more",
    VALIDATION: "data.valid above 0",
    EAGER: "trainer.compile=false",
}  # how
WITHOUT = {MISSING: "data.missing=refused"}  # settings that do not give a fact


class Rule(NamedTuple):
    """One reason for or against a fact."""

    subject: str  # the option, or the setting of it, whose reason it is
    fact: str
    why: str
    instead: str  # what else would do than to change the fact


def refuse(config: Config) -> None:
    """Refuse parts and settings that cannot be together, or of which one has no effect beside the other.

    Raises:
        UserError: names the first.
    """
    given = facts(config)
    for rule in _rules(config, "needs"):
        if rule.fact == VALIDATION and rule.fact not in given:
            raise UserError(f"{rule.subject}: has no effect with data.valid=0; give validation examples")
        if rule.fact not in given:
            raise UserError(f"{rule.subject}: {rule.why}; {_giving(rule.fact, given)} is allowed{rule.instead}")
    for rule in _rules(config, "refuses"):
        if rule.fact in given:
            allowed = _without(given[rule.fact], rule.fact, given)
            raise UserError(f"{rule.subject}: {rule.why}; {allowed} is allowed{rule.instead}")
    for group, part in config.parts.items():
        for name in signature(part.target).facts.get("ignores", ()):
            _refuse_ignored(config, option_of(group, part.target), name, given)
    _refuse_settings(config, given)


def facts(config: Config) -> dict[str, str]:
    """Return every fact that holds, with the group that gives it (or `settings`)."""
    found = {
        fact: group for group, part in config.parts.items() for fact in signature(part.target).facts.get("gives", ())
    }
    by_settings = {
        TWO_DIMENSIONS: config.model.latent_dim > 1,
        VALIDATION: config.data.valid != 0,
        EAGER: not config.trainer.compile,
        MISSING: getattr(config.data, "missing", None) == "observed",
    }
    return found | {fact: "settings" for fact, holds in by_settings.items() if holds}


def refuse_without_validation(config: Config, why: str) -> None:
    """Refuse what goes by validation examples where there are none, for the reason given.

    Raises:
        UserError: some setting does.
    """
    needing = [
        *(key for key in ("trainer.early_stopping", "trainer.prune") if _value(config, key)),
        *(rule.subject for rule in _rules(config, "needs") if rule.fact == VALIDATION),
        *(["score=valid/log_likelihood"] if config.score == "valid/log_likelihood" else []),
    ]
    if needing:
        raise UserError(f"{needing[0]}: has no effect with {why}; give validation examples")


def _rules(config: Config, kind: str) -> Iterator[Rule]:
    """Yield the reasons of every part that hold under the settings of now."""
    for group, part in config.parts.items():
        for fact, reason in signature(part.target).facts.get(kind, {}).items():
            why, conditions = (reason, {}) if isinstance(reason, str) else reason
            if all(_value(config, key) in values for key, values in conditions.items()):
                key = next(iter(conditions), None)
                subject = option_of(group, part.target) if key is None else f"{key}={_shown(_value(config, key))}"
                yield Rule(subject, fact, _with_choices(config, why), f", or another {key}" if key else "")


def _with_choices(config: Config, why: str) -> str:
    """Return a reason with each {GROUP} in it as the option that was chosen."""
    for group, part in config.parts.items():
        why = why.replace(f"{{{group}}}", option_of(group, part.target))
    return why


def _value(config: Config, key: str) -> Any:
    group, _, name = key.partition(".")
    return getattr(getattr(config, group), name, None) if name else getattr(config, group)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _giving(fact: str, given: dict[str, str]) -> str:
    """Say what would give a fact: a setting, or options."""
    if fact in BY_SETTINGS:
        return BY_SETTINGS[fact]
    found = [_named(group, _options(group, fact, True, given)) for group in GROUPS]
    return " or ".join(filter(None, found))


def _without(group: str, fact: str, given: dict[str, str]) -> str:
    """Say which options of a group, or which setting, do not give a fact."""
    return WITHOUT.get(fact) or _named(group, _options(group, fact, False, given))


def _named(group: str, options: list[str]) -> str:
    """Return GROUP=A, B or C; where all but one will do, so few words as that; nothing where there are none."""
    if len(options) > 2 and len(options) == len(targets(group)) - 1:
        return f"any other {group}"
    *most, last = options or [""]
    shown = f"{', '.join(most)} or {last}" if most else last
    return f"{group}={shown}" if options else ""


def _options(group: str, fact: str, wanted: bool, given: dict[str, str]) -> list[str]:
    """Return the options of a group that give a fact, or do not; those alone whose own needs are met, if there are."""
    stated = {name: signature(target).facts for target, name in targets(group).items()}
    found = [name for name, facts in stated.items() if (fact in facts.get("gives", ())) == wanted]
    return [name for name in found if set(stated[name].get("needs", ())) <= set(given)] or found


def _refuse_ignored(config: Config, beside: str, name: str, given: dict[str, str]) -> None:
    """Refuse a setting other than 0, or the part that gives a fact, which has no effect beside another part."""
    if name in given:
        group = given[name]
        raise UserError(
            f"{option_of(group, getattr(config, group).target)}: has no effect with {beside}; "
            f"{_without(group, name, given)} is allowed"
        )
    if "." in name and (value := _value(config, name)):
        raise UserError(f"{name}={_shown(value)}: has no effect with {beside}; 0 is allowed")


def _refuse_settings(config: Config, given: dict[str, str]) -> None:
    """Refuse settings that contradict one another."""
    data, free_bits = config.data, getattr(config.kl, "free_bits", 0)
    if data.dequantize and "mass" in given:
        beside = option_of("likelihood", config.likelihood.target)
        raise UserError(
            f"data.dequantize=true: has no effect with {beside}, a mass over discrete values; "
            f"{_without('likelihood', 'mass', given)} is allowed"
        )
    if data.missing == "observed" and SEES in given:
        beside = option_of("likelihood", config.likelihood.target)
        raise UserError(
            f"data.missing=observed: {beside} sees all of x, and has no likelihood of a part; "
            f"{_without(given[SEES], SEES, given)} is allowed"
        )
    if data.dequantize and data.binarize not in ("auto", "none"):
        raise UserError(f"data.dequantize=true: contradicts data.binarize={data.binarize}; auto or none is allowed")
    if data.valid == 0:
        refuse_without_validation(config, "data.valid=0")
    if config.score == "valid/log_likelihood" and config.trainer.log_likelihood_samples == 0:
        raise UserError("score=valid/log_likelihood: needs trainer.log_likelihood_samples; at least 1 is allowed")
    if getattr(config.kl, "weight", 1) == 0 and free_bits > 0:
        raise UserError(f"kl.free_bits={free_bits:g}: has no effect with kl.weight=0; 0 is allowed")
    scale, floor = (getattr(config.likelihood, name, None) for name in ("scale", "min_scale"))
    if isinstance(scale, int | float) and isinstance(floor, int | float) and scale < floor:
        raise UserError(f"likelihood.scale={scale:g}: at least likelihood.min_scale={floor:g} is allowed")
    if getattr(config.optimizer, "nesterov", False) and not getattr(config.optimizer, "momentum", 0):
        raise UserError("optimizer.nesterov=true: has no effect with optimizer.momentum=0; more than 0 is allowed")
