"""Which settings from elsewhere would run code: commands and foreign parts. No torch here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from vae_cli.config.options import modern, targets
from vae_cli.config.types import COMMAND


def command(content: Any, trust: bool | Sequence[str] = False) -> str | None:
    """Return the setting, of a group of settings from elsewhere, that would run an untrusted command, else None.

    Args:
        content: its settings.
        trust: everything (true), or what is trusted by name: `pipe` for commands.
    """
    values = content.items() if isinstance(content, dict) else ()
    found = next((key for key, value in values if isinstance(value, str) and value.startswith(COMMAND)), None)
    trusted = trust is True or (not isinstance(trust, bool) and COMMAND.rstrip(":") in trust)
    return None if trusted else found


def foreign(group: str, content: Any, trust: bool | Sequence[str] = False) -> str | None:
    """Return the target of a group of settings from elsewhere if it is neither ours nor trusted, else None.

    Only the targets of our options are ours: a name that begins with vae_cli could be any function.

    Args:
        group: of options.
        content: its settings.
        trust: everything (true), or packages by name.
    """
    target = str(content.get("_target_") or "") if isinstance(content, dict) else ""
    ours = modern(group, target) in targets(group)
    ours = ours or bool(group == "optimizer" and re.fullmatch(r"torch\.optim\.\w+", target))
    packages = () if isinstance(trust, bool) else trust
    trusted = trust is True or target.partition(".")[0] in packages
    return target if target and not ours and not trusted else None
