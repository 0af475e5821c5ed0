"""The settings of vae-train: one part a group, and the loop's. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from vae_cli.config.types import Count, Interval, OpenFraction, Part, Positive, Seed, Settings


class Trainer(Settings):
    """The loop."""

    epochs: Count
    steps: Count | None
    batch_size: Count
    accumulate: Count
    grad_clip: Positive | None
    ema: OpenFraction | None
    early_stopping: Count | None
    prune: Count | None
    final: Literal["best", "last"]
    final_samples: Count
    log_likelihood_samples: Annotated[int, Field(ge=0)]
    log_likelihood_examples: Count | None
    validate_every: Positive
    on_nan: Literal["stop", "skip", "rollback"]
    checkpoint_every: Literal["auto"] | Count | Interval
    log_every: Count
    device: Literal["auto", "cpu", "cuda", "mps"]
    resident: bool | Literal["auto"]
    precision: Literal["fp32", "tf32", "bf16"]
    compile: bool
    cuda_graph: bool | Literal["auto"]
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    deterministic: bool


class Config(Settings):
    """A whole configuration."""

    data: Part
    model: Part
    latent: Part
    likelihood: Part
    prior: Part
    posterior: Part
    objective: Part
    kl: Part
    conditional: Part
    optimizer: Part
    lr_schedule: Part
    trainer: Trainer
    seed: Seed
    resume: str | None
    score: Literal["valid/elbo", "valid/log_likelihood"]

    @property
    def plain(self) -> dict[str, Any]:
        """The whole configuration as plain values, as it was composed."""
        return self.model_dump(by_alias=True, serialize_as_any=True, exclude_unset=True)

    @property
    def parts(self) -> dict[str, Part]:
        """The part of each group."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Part)}
