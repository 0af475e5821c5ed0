"""What earlier versions called settings and weights, and what that is today. No torch here.

The order of the parameters has not changed, so an optimizer's state, which counts them, still fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vae_cli.config.options import GROUPS, modern

LADDER = "vae_cli.model.ladder.Ladder"  # the model of an earlier version, which held the latents as well
SINCE = {"latent": {"_target_": "vae_cli.latent.flat.Flat"}}  # groups that earlier versions did not have
NEW: dict[str, dict[str, Any]] = {  # settings likewise: of each source of data, by its name, or of all ('')
    "": {"missing": "refused", "limit_train": None},
    "images": {"resize": "crop", "on_broken": "stop"},
    "shards": {"resize": "crop"},
    "huggingface": {"resize": "crop"},
}
SINCE_OF: dict[str, dict[str, Any]] = {"vae_cli.model.linear.Linear": {"hidden": []}}  # and of other parts
MOVED = (
    ("posterior.top.", "latent.posterior."),
    ("prior.top.", "latent.prior."),
    ("posterior.", "latent.posterior."),
    ("prior.", "latent.prior."),
)  # how names of weights began, and how they begin
OF_LADDER = (
    ("model.body.", "model."),
    ("model.up.", "latent.up."),
    ("model.statistics.", "latent.statistics."),
    ("model.down.", "latent.down."),
)  # likewise, of the model of an earlier version that held the latents as well


def modernise(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of an earlier version as they are called today."""
    if _has_old_ladder(settings):
        settings = {**settings, **_split_ladder(settings["model"])}
    found = {**SINCE, **settings} if set(GROUPS) - set(SINCE) <= set(settings) else dict(settings)
    if isinstance(data := found.get("data"), dict):
        found["data"] = {**NEW[""], **NEW.get(_target(data).rpartition(".")[2], {}), **data}
    for group in GROUPS:
        if target := _target(found.get(group)):
            added = SINCE_OF.get(modern(group, target), {})
            found[group] = {**added, **found[group], "_target_": modern(group, target)}
    return found


def _has_old_ladder(settings: Any) -> bool:
    """Whether settings are of the version whose model held the latents."""
    return isinstance(settings, Mapping) and _target(settings.get("model")) == LADDER and "latent" not in settings


def _target(content: Any) -> str:
    target = content.get("_target_") if isinstance(content, dict) else None
    return target if isinstance(target, str) else ""


def _split_ladder(old: Mapping[str, Any]) -> dict[str, Any]:
    """Return model and latent of what once was model=ladder."""
    try:
        first, *hidden = old["hidden"]
        body = {"latent_dim": old["latent_dim"], "hidden": [first] * old["depth"], "activation": old["activation"]}
        conv = {"_target_": "vae_cli.model.conv.Conv", "channels": old["channels"]}
        mlp = {"_target_": "vae_cli.model.mlp.MLP", "bias_from_data": False}
        own = {"below": old["below"], "hidden": hidden, "depth": old["depth"], "activation": old["activation"]}
        return {
            "model": body | (conv if old["channels"] else mlp),
            "latent": {"_target_": "vae_cli.latent.ladder.Ladder", **own},
        }
    except (KeyError, TypeError, ValueError):  # damaged: refused where it is checked
        return {}


def modernise_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of an earlier version with its weights as they are called today; their order stays."""
    names = (*OF_LADDER, *MOVED) if _has_old_ladder(state.get("config")) else MOVED
    found = {key: state[key] for key in ("model", "averaged") if isinstance(state.get(key), dict)}
    return {**state, **{key: {_renamed(name, names): each for name, each in found[key].items()} for key in found}}


def _renamed(name: str, names: Sequence[tuple[str, str]]) -> str:
    """Return the name of a weight with its beginning as it is today."""
    return next((now + name.removeprefix(then) for then, now in names if name.startswith(then)), name)
