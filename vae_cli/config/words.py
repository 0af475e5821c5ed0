"""One-line error messages: the full key, what was given, what is allowed."""

from __future__ import annotations

import re
from pathlib import Path

from vae_cli.system.errors import UserError, first_line, suggest
from vae_cli.system.output import writable

_HERE = Path(__file__).parents[1]
OWN_CONF: list[Path] = []  # folders of a user's own options
CONF = str(_HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf")


OVERLAYS = ("experiment", "debug", "sweep")  # groups that only set others
EXTRAS = {  # options that Hydra's plugins bring, and the extra of ours that installs each
    "hydra/launcher=joblib": "joblib",
    "hydra/launcher=submitit_local": "slurm",
    "hydra/launcher=submitit_slurm": "slurm",
    "hydra/launcher=ray": "ray",
    "hydra/sweeper=optuna": "optuna",
}

_MAIN = ["train"]  # the configuration of the command that runs
_OTHERS: dict[str, list[str]] = {
    "evaluate": [],
    "generate": ["task"],
    "export": [],
    "pack": ["data"],
}  # the groups of the commands other than vae-train


def use(name: str) -> None:
    """Set the command whose settings and groups error messages name: those of conf/NAME.yaml."""
    _MAIN[0] = name


def unknown_setting(key: str) -> str:
    """Return that a setting does not exist, and which options have it or which setting was meant."""
    group, _, name = key.partition(".")
    if not name and group in _root() and group not in groups():
        return f"{key}: no group of options here; its settings are allowed ({', '.join(sorted(_within(group)))})"
    known_group = group in groups()
    owners = sorted(option for option, names in _settings(group).items() if name in names and known_group)
    if owners:
        having = ", ".join(f"{group}={option}" for option in owners)
        return f"{key}: has no effect with the chosen {group}; it is a setting of {having}"
    within = [group] if name and group in groups() else groups()
    known = {f"{g}.{each}" for g in within for names in _settings(g).values() for each in names}
    known |= set() if name else {*_root(), *groups()}
    return f"{key}: no such setting{suggest(key, known) or _allowed(group)}"


def one_line(error: Exception) -> str:
    """Turn an error of ours, of Hydra or of OmegaConf into one line, without a terminal's control characters.

    If an error of ours has details, each is one more line.
    """
    lines = error.args if isinstance(error, UserError) else (_line(error),)
    return "\n".join(map(writable, lines))


def _line(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = str(error).strip().removeprefix("UserError raised while resolving interpolation: ")
    if (mark := getattr(error, "problem_mark", None)) is not None:
        return f"{mark.name}:{mark.line + 1}: no valid YAML ({getattr(error, 'problem', None) or text.splitlines()[0]})"
    if (override := getattr(error, "override", None)) and type(error).__name__ == "OverrideParseException":
        return f"{override}: cannot be read ({text.splitlines()[0]}); KEY=VALUE is allowed, odd values in '\"quotes\"'"
    options = getattr(error, "options", None)
    if options is not None:
        group, _, option = str(getattr(error, "missing_cfg_file", "")).rpartition("/")
        if extra := EXTRAS.get(f"{group}={option}"):
            return f"{group}={option}: not installed; pip install 'vae-cli[{extra}]' brings it"
        names = sorted(name for name in options if not name.startswith("_"))
        return f"{group}={option}: no such option{suggest(option, names)} (allowed: {', '.join(names)})"
    if match := re.search(r"Could not override '([^']+)'", text):
        key = match[1].lstrip("/")
        return f"{key}: no such group of options{suggest(key, groups())}" if "@" in key else unknown_setting(key)
    if "Missing mandatory value" in text:
        return f"{getattr(error, 'full_key', None) or text.split()[-1]}: required; nothing was given"
    if text.startswith(MERGING) and error.__cause__ is not None:
        return f"{text.splitlines()[0].removeprefix(MERGING)}: {first_line(error.__cause__)}"
    return _reworded(text, getattr(error, "full_key", None)) or (text.splitlines()[0] if text else first_line(error))


MERGING = "Error merging override "  # how Hydra begins to say that a value does not fit
REWORDED = {  # what Hydra and OmegaConf say, and what it means for what was typed
    r"Could not find '([^']+)'": "{}: no such option",
    r"Ambiguous value for argument '(.+)'": "{}: several values; one is allowed (a list is [A,B], -m begins a sweep)",
    r"Sweep parameters '(.+=interval\(.+)'": "{}: only a search draws from an interval; -m sweep=optuna is one",
    r"Sweep parameters '(.+)' requires --multirun": "{}: several values; one is allowed (-m begins a sweep)",
    r"Multiple values for (\S+)\. ": "+{0}: has its place already; drop the +",
    r"(?s)Error in call to target '([^']+)':\n([^\n]+)": "{}: {}",
}


def _reworded(text: str, key: str | None) -> str | None:
    if match := re.match(r"\w+ raised while resolving interpolation: \"?(.+?)\"?$", text.partition("\n")[0]):
        return f"{key}: {match[1]}"
    found = ((re.search(pattern, text), words) for pattern, words in REWORDED.items())
    return next((words.format(*match.groups()) for match, words in found if match), None)


def groups() -> list[str]:
    """Return the groups of options of the command."""
    if _MAIN[0] in _OTHERS:
        return _OTHERS[_MAIN[0]]
    others = {"hydra", *(group for groups in _OTHERS.values() for group in groups)} - {"data"}  # which it has as well
    return sorted(path.name for path in Path(CONF).iterdir() if path.is_dir() and path.name not in others)


def _load(path: Path) -> dict:
    from omegaconf import OmegaConf
    from yaml import YAMLError

    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except YAMLError:  # a user's own file that this command may not even use
        return {}
    return content if isinstance(content, dict) else {}


def _root() -> list[str]:
    return [key for key in _load(Path(CONF) / f"{_MAIN[0]}.yaml") if key not in ("defaults", "hydra")]


def _within(group: str) -> list[str]:
    content = _load(Path(CONF) / f"{_MAIN[0]}.yaml").get(group)
    return [f"{group}.{name}" for name in content] if isinstance(content, dict) else [group]


def _settings(group: str) -> dict[str, set[str]]:
    """Return the settings of each option of a group, the shared ones under the option ''."""
    if group in OVERLAYS:
        return {}
    shared = _load(Path(CONF) / f"{_MAIN[0]}.yaml").get(group)
    shared = set(shared) if isinstance(shared, dict) else set()
    files = [path for folder in (Path(CONF), *OWN_CONF) for path in sorted((folder / group).glob("*.yaml")) if group]
    return {path.stem: set(_load(path)) - {"_target_", "defaults"} | shared for path in files}


def _allowed(group: str) -> str:
    names = sorted(set().union(*_settings(group).values())) if group in groups() else []
    if names:
        return f" (allowed: {', '.join(f'{group}.{name}' for name in names)})"
    return f" (allowed: {', '.join(sorted({*_root(), *groups()}))})"
