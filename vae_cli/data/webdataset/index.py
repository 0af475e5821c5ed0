"""What a set of shards holds: index.json, written when they are packed, or found out by reading them once. No torch."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError

from vae_cli.config.types import Count, Settings
from vae_cli.system.disk import write
from vae_cli.system.errors import UserError, first_line

NAME = "index.json"


def _plain(name: str) -> str:
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise ValueError("a plain file name is allowed")  # an index from elsewhere leads nowhere else
    return name


class Shard(Settings):
    """A tar file and the number of its examples."""

    file: Annotated[str, AfterValidator(_plain)]
    examples: Annotated[int, Field(ge=0, lt=2**48)]


class Index(Settings):
    """What shards hold.

    Attributes:
        source: what was packed.
        shape: of one example.
        levels: of grey levels 0 … levels − 1; None where values are floats.
        whole: whether they were whole numbers, but no bytes.
        labels: the labels of the classes as they stand in the shards, in order; None where there are no classes.
        names: of the classes, for people.
        attributes: A, where labels are attribute vectors.
        low: no value is below.
        high: no value is above.
        mean: [D] of each element of floats, over the training examples.
        std: [D] likewise.
        train, valid, test: the shards of each split.
    """

    format: Literal["vae-cli shards 1"] = "vae-cli shards 1"
    source: str = ""
    shape: Annotated[list[Count], Field(min_length=1)]
    levels: Annotated[int, Field(ge=2, le=256)] | None
    whole: bool = False
    labels: list[str] | None = None
    names: list[str] | None = None
    attributes: Count | None = None
    low: float
    high: float
    mean: list[float] | None = None
    std: list[float] | None = None
    train: list[Shard] = Field(default_factory=list)
    valid: list[Shard] = Field(default_factory=list)
    test: list[Shard] = Field(default_factory=list)


def read_index(path: Path, key: str) -> Index:
    """Return the index in a file.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return Index.model_validate_json(path.read_text(), strict=False)
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read ({error.strerror})") from None
    except ValidationError as error:
        problem: Any = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{key}: {path} is no index of shards ({where}: {first_line(ValueError(problem['msg']))})"
        ) from None


def write_index(index: Index, path: Path) -> None:
    """Write an index, whole or not at all."""
    write(path, index.model_dump_json(indent=1))
