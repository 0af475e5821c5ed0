"""The settings of the commands other than vae-train. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from vae_cli.config.types import Count, Part, Positive, Seed, Settings, Split

Format = Literal["onnx", "torch", "safetensors"]


class Moved(Settings):
    """Where the data of a run are now, if they have moved: the settings under data that are paths."""

    root: str | None
    path: str | None
    labels: str | None
    valid_path: str | None
    test_path: str | None
    index: str | None

    @property
    def places(self) -> dict[str, str]:
        """Those that were given."""
        return self.model_dump(exclude_none=True)


PATHS = tuple(Moved.model_fields)  # under data


class Evaluate(Settings):
    """Settings of vae-eval."""

    run: str
    split: Split
    samples: Count
    examples: Count | None
    metrics: list[
        Literal["elbo", "log_likelihood", "aggregate", "amortisation", "probe", "disentanglement", "quality", "fid"]
    ]
    amortisation_examples: Annotated[int, Field(ge=2)]
    data: Moved
    batch_size: Count | None
    compile: bool
    device: Literal["auto", "cpu", "cuda", "mps"]
    seed: Seed
    trust: bool | list[str]


class Generate(Settings):
    """Settings of vae-generate; those of the task are typed by the signature of its function."""

    run: str
    task: Part
    output: str | None
    data: Moved
    device: Literal["auto", "cpu", "cuda", "mps"]
    seed: Seed
    trust: bool | list[str]


class Export(Settings):
    """Settings of vae-export."""

    run: str
    format: Format
    output: str | None
    trust: bool | list[str]


class Pack(Settings):
    """Settings of vae-data pack, without those of the data."""

    out: str
    megabytes: Positive
    format: Literal["auto", "png", "npy"]
    workers: Count | None
