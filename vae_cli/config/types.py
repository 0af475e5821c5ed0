"""The types that constructors give their settings, each with its range. No torch here.

A setting has two homes: its value, unit and comment stand in conf/GROUP/OPTION.yaml, its type in the signature of the
class or function that the option names. `signatures` reads the latter without importing it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _amount(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError("a count (0, 1, 2, …) or a fraction below 1")
    return value


def _exists(path: str) -> str:
    try:
        found = Path(path).exists()
    except (OSError, ValueError):  # not a name that a file can have
        found = False
    if not found:
        raise ValueError("nothing is there; a path that exists")
    return path


def _interval(text: str) -> str:
    if not re.match(EVERY, text):
        raise ValueError('a text such as "2 epochs", "10 minutes" or "2 hours"')
    return text


Count = Annotated[int, Field(ge=1, lt=2**31)]
CountOrNone = Annotated[int, Field(ge=0, lt=2**31)]
TwoOrMore = Annotated[int, Field(ge=2, lt=2**31)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]  # within float32, and so is what becomes of it
Positive = Annotated[float, Field(gt=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[int | float, AfterValidator(_amount)]
ExistingPath = Annotated[str, AfterValidator(_exists)]
Stages = Annotated[int, Field(ge=1, le=50)]
Growth = Annotated[float, Field(ge=1, le=100)]
Betas = Annotated[list[Momentum], Field(min_length=2, max_length=2)]
Frame = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]
SomeWidths = Annotated[list[Count], Field(min_length=1)]
TwoWidths = Annotated[list[Count], Field(min_length=2)]
Widths = list[Count]
Indices = Annotated[list[CountOrNone], Field(min_length=2)]
DataShape = Annotated[list[Count], Field(min_length=1, max_length=3)]
EmnistSplit = Literal["balanced", "letters", "digits", "mnist", "bymerge", "byclass"]
CelebACrop = Annotated[int, Field(ge=1, le=178)]
Color = Literal["rgb", "grayscale"]
Resize = Literal["crop", "pad", "stretch"]
OnBroken = Literal["stop", "skip"]
Activation = Literal["relu", "gelu", "silu", "elu", "leaky_relu", "tanh", "gated"]
Scale = Literal["per_pixel", "per_element", "shared", "optimal"] | Positive
Split = Literal["train", "valid", "test"]
Condition = int | str | list[float] | None
Mask = ExistingPath | Literal["auto", "left", "right", "top", "bottom", "random"]
Interval = Annotated[str, AfterValidator(_interval)]

COMMAND = "pipe:"  # how a path begins that is a command for the shell, whose output is read
EVERY = r"^(\d+(?:\.\d+)?) ?(step|epoch|minute|hour)s?$"


class Settings(BaseModel):
    """Strictly typed, finite, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Part(Settings):
    """A part: what to build (`_target_`) and its settings, which its own signature types (see `signatures`)."""

    target: str = Field(alias="_target_")

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were given, by name."""
        return self.model_dump(exclude={"target"}, exclude_unset=True)


class OpenPart(Part):
    """A part whose signature cannot be read, or takes any keyword: its own constructor checks its settings."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


def parse_interval(amount: int | str) -> tuple[float, str]:
    """Return how much of what passes between two checkpoints: 1000 is (1000, steps), "2 hours" (120, minutes)."""
    found = re.match(EVERY, str(amount))
    if not found:
        return float(amount), "steps"
    return (60.0 * float(found[1]), "minutes") if found[2] == "hour" else (float(found[1]), f"{found[2]}s")
