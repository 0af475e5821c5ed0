"""What the ranks above the first report: nothing."""

from __future__ import annotations

from collections.abc import Callable


class Silent:
    """Takes every event of a `Reporter`, and writes none."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def __getattr__(self, event: str) -> Callable[..., None]:
        return lambda *_, **__: None
