"""The settings of vae-generate, typed. No torch; defaults live in conf/generate.yaml and conf/task."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vae_cli.config.commands import Moved
from vae_cli.config.types import Count, ExistingPath, Part, Positive, Seed, Settings
from vae_cli.system.errors import UserError

Index = Annotated[int, Field(ge=0)]
Split = Literal["train", "valid", "test"]


class Task(Part):
    """What a task makes."""


class Sample(Task):
    """Draws of the model."""

    n: Count
    condition: int | str | list[float] | None
    temperature: Positive
    sampler: Literal["prior", "gaussian_mixture", "flow"]
    means: bool


class Source(Task):
    """A task on examples: of a split of the run, or of a person's own."""

    split: Split
    source: ExistingPath | None


class Reconstruct(Source):
    """Examples beside what the model makes of them."""

    n: Count
    means: bool


class Interpolate(Source):
    """A way between examples."""

    indices: Annotated[list[Index], Field(min_length=2)]
    steps: Annotated[int, Field(ge=2)]
    kind: Literal["spherical", "linear"]


class Traverse(Source):
    """One latent dimension after the other."""

    index: Index
    dimensions: Count
    steps: Annotated[int, Field(ge=2)]
    range: Positive


class Manifold(Task):
    """A two-dimensional latent space."""

    n: Annotated[int, Field(ge=2)]
    condition: int | str | list[float] | None


class Transfer(Source):
    """The same z under every label."""

    n: Count


class Encode(Source):
    """Codes."""


class Decode(Task):
    """Codes to examples."""

    codes: ExistingPath
    means: bool


class Impute(Source):
    """Missing values."""

    method: Literal["importance", "gibbs"]
    mask: ExistingPath | Literal["auto", "left", "right", "top", "bottom", "random"]
    n: Count | None
    samples: Count
    steps: Count


class Anomaly(Source):
    """Scores."""

    score: Literal["log_likelihood", "elbo"]
    over_classes: Literal["auto", "mean", "max", "none"]
    samples: Count
    n: Count


class Generate(Settings):
    """Everything vae-generate is told."""

    run: str
    task: Task
    output: str | None
    data: Moved
    device: Literal["auto", "cpu", "cuda", "mps"]
    seed: Seed
    trust: bool | list[str]


TASKS: dict[str, type[Task]] = {
    kind.__name__.lower(): kind
    for kind in (Sample, Reconstruct, Interpolate, Traverse, Manifold, Transfer, Encode, Decode, Impute, Anomaly)
}
PREFIX = "vae_cli.commands.generate.tasks."


def task_schema(target: Any) -> type[Task]:
    """Return the schema of a task's target.

    Raises:
        UserError: there is no such task.
    """
    name = str(target).removeprefix(PREFIX)
    if name not in TASKS:
        raise UserError(f"task._target_={target}: no such task ({', '.join(TASKS)} are allowed)")
    return TASKS[name]
