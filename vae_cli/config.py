"""From a composed configuration to typed settings, or to one line that names what is wrong. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vae_cli.disk import SETTINGS, TYPED, refuse_links
from vae_cli.errors import CONF, OVERLAYS, UserError, first_line, unknown_setting
from vae_cli.schema import OPTIONS, Config, Evaluate, Part, Trainer

MAY_CHANGE = ("trainer.", "optimizer.lr", "score")  # settings that a resumed run may be given anew
MUST_STAY = ("trainer.batch_size", "trainer.ema")  # but for these
PATHS = ("root", "path", "labels", "valid_path", "test_path", "index")  # under data
MOVES = tuple(f"data.{key}" for key in PATHS)  # data are known by what they are, not by where

LATER: dict[str, dict[str, Any]] = {
    "vae_cli.data.files.images": {"resize": "crop", "on_broken": "stop"},
    "vae_cli.data.shards.shards": {"resize": "crop"},
    "vae_cli.data.huggingface.huggingface": {"resize": "crop"},
}  # settings of sources that older runs were stored without, and what these runs did


def validate(raw: Mapping[str, Any]) -> Config:
    """Check a composed configuration and return it typed.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type, out of range or without effect.
    """
    parts = {group: check_part(group, raw) for group in OPTIONS if group in raw}
    trainer = check(Trainer, raw.get("trainer"), "trainer.")
    config = check(Config, {**raw, **parts, "trainer": trainer}, "")
    _refuse_without_effect(config)
    return config


def stored(folder: Path) -> dict[str, Any]:
    """Return the settings that a run was accepted with.

    Raises:
        UserError: they cannot be read, or are no settings.
    """
    path = folder / SETTINGS
    refuse_links(folder)
    try:
        found = plain_yaml(path)
    except Exception as error:  # damaged text fails in as many ways as it has types
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from error
    if not isinstance(found, dict) or not isinstance(found.get("data"), dict):
        raise UserError(f"{path}: holds no settings of a run")
    return completed(found)


def completed(settings: Any) -> Any:
    """Return the settings of a stored run with those of its data that came later, at what the run did."""
    data = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(data, dict):
        return settings
    return {**settings, "data": {**LATER.get(str(data.get("_target_")), {}), **data}}


def typed(folder: Path) -> list[str]:
    """Return the overrides that a run was begun with, as they were typed; none where what stands there are none."""
    try:
        found = plain_yaml(folder / TYPED)
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return []
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def plain_yaml(path: Path) -> Any:
    """Return what a YAML file holds: plain values alone, each written out where it stands.

    Raises:
        OSError, ValueError, yaml.YAMLError: it cannot be read, or holds tags or aliases; these can inflate it.
    """
    text = path.read_text()
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
        raise ValueError("holds an alias (*NAME)")
    return yaml.safe_load(text)


def validate_evaluate(raw: Any) -> Evaluate:
    """Check the settings of vae-eval and return them typed.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type or out of range.
    """
    return check(Evaluate, raw, "")


def check_part(group: str, raw: Mapping[str, Any]) -> Any:
    """Return the settings of the option that was chosen of a group, typed.

    Raises:
        UserError: names the first setting that is unknown, of the wrong type or out of range.
    """
    return check(_schema(group, raw), raw[group], f"{group}.")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'kl': {'weight': 1.0}} → {'kl.weight': 1.0}."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def stays(key: str) -> bool:
    """Whether a resumed run keeps a setting."""
    return not key.startswith(MAY_CHANGE) or key in MUST_STAY


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ between two runs, each with both of its values."""
    a, b = flat(one), flat(other)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key) and key != "resume"}


def compose(*overrides: str) -> Config:
    """Compose the settings that `vae-train OVERRIDES` would run with, in this process."""
    from hydra import compose as composed
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    import vae_cli.command  # noqa: F401  registers what options may refer to

    with initialize_config_dir(CONF, version_base="1.3"):
        raw = OmegaConf.to_container(composed("train", list(overrides)), resolve=True, throw_on_missing=True)
    assert isinstance(raw, dict)
    return validate({str(key): value for key, value in raw.items() if key not in (*OVERLAYS, "hydra")})


def _schema(group: str, raw: Mapping[str, Any]) -> type[Part]:
    content = raw[group]
    if not isinstance(content, Mapping) or not isinstance(content.get("_target_"), str):
        raise UserError(f"{group}: one option with a _target_ is required; conf/{group} has them")
    target = content["_target_"]
    if target not in OPTIONS[group] and target.startswith("vae_cli."):
        raise UserError(f"{group}._target_={target}: no such part of vae_cli")
    return OPTIONS[group].get(target, OPTIONS[group][""])


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
    _refuse_contradictions(config)
    if config.data.valid == 0:
        refuse_without_validation(config, "data.valid=0")
    if config.score == "valid/log_likelihood" and config.trainer.log_likelihood_samples == 0:
        raise UserError("score=valid/log_likelihood: needs trainer.log_likelihood_samples; at least 1 is allowed")
    if config.kl.weight == 0 and config.kl.free_bits > 0:
        raise UserError(f"kl.free_bits={config.kl.free_bits:g}: has no effect with kl.weight=0; 0 is allowed")


def refuse_without_validation(config: Config, why: str) -> None:
    """Refuse what goes by validation examples where there are none, for the reason given.

    Raises:
        UserError: some setting does.
    """
    needing = {
        "trainer.early_stopping": config.trainer.early_stopping,
        "lr_schedule=plateau": config.lr_schedule.target.endswith("PlateauLR"),
        "trainer.prune": config.trainer.prune,
        "score=valid/log_likelihood": config.score == "valid/log_likelihood",
    }
    if found := [key for key, chosen in needing.items() if chosen]:
        raise UserError(f"{found[0]}: has no effect with {why}; give validation examples")


def _refuse_contradictions(config: Config) -> None:
    """Refuse parts that cannot be together."""
    chosen = {group: getattr(config, group).target.removeprefix("vae_cli.") for group in OPTIONS}
    objective, posterior = chosen["objective"].removeprefix("objective."), chosen["posterior"]
    if chosen["prior"] == "prior.Vamp" and posterior == "posterior.Flow":
        raise UserError(
            "prior=vamp: the densities of posterior=flow at every pseudo-input would take minutes a step; "
            "posterior=gaussian or full_gaussian is allowed"
        )
    if chosen["prior"] == "prior.Flow" and config.model.latent_dim == 1:
        raise UserError(
            "prior=flow: an autoregressive flow needs two dimensions; model.latent_dim=2 or more is allowed"
        )
    if objective == "MMD" and config.kl.weight == 0 and chosen["prior"] != "prior.Standard":
        raise UserError("kl.weight=0: nothing would train the prior with objective=mmd; prior=standard is allowed")
    if chosen["prior"] == "prior.Conditional" and chosen["conditional"] == "conditioning.Unconditional":
        raise UserError("prior=conditional: needs labels; with it conditional=label is allowed")
    if objective in ("IWAE", "BetaTC"):
        name = {"IWAE": "iwae", "BetaTC": "beta_tc"}[objective]
        if config.kl.free_bits > 0:
            raise UserError(f"kl.free_bits={config.kl.free_bits:g}: has no effect with objective={name}; 0 is allowed")
        if chosen["kl"] == "schedule.Capacity":
            raise UserError(f"kl=capacity: has no effect with objective={name}; any other kl is allowed")
    gradient = getattr(config.objective, "gradient", None)
    if gradient == "dreg" and config.trainer.compile:
        raise UserError(
            "trainer.compile=true: the hook of objective.gradient=dreg is not compiled rightly; "
            "objective.gradient=standard or stl is allowed"
        )
    ladder = chosen["model"] == "model.ladder.Ladder"
    if objective == "IWAE" and ladder and gradient != "standard":
        raise UserError(
            f"objective.gradient={gradient}: model=ladder shares weights between q and p; standard is allowed"
        )
    if objective in ("BetaTC", "Factor") and ladder:
        raise UserError("model=ladder: its layers depend on one another; objective=elbo, iwae or mmd is allowed")
    if objective == "BetaTC" and posterior in ("posterior.FullGaussian", "posterior.Flow"):
        raise UserError("objective=beta_tc: needs independent dimensions in q(z|x); posterior=gaussian is allowed")
