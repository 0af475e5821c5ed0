"""The typed schema: each setting's type and range, in one place. Nothing here imports torch.

Defaults live in conf/*.yaml alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vae_cli.errors import UserError


def _amount(value: int | float) -> int | float:
    if value < 0 or (isinstance(value, float) and value >= 1):
        raise ValueError("a count (0, 1, 2, …) or a fraction below 1")
    return value


def _exists(path: str) -> str:
    try:
        found = Path(path).exists()
    except (OSError, ValueError):  # no name that a file can have
        found = False
    if not found:
        raise ValueError("nothing is there; a path that exists")
    return path


def _interval(text: str) -> str:
    if not re.match(EVERY, text):
        raise ValueError('a text such as "2 epochs", "10 minutes" or "2 hours"')
    return text


Count = Annotated[int, Field(ge=1, lt=2**31)]
NonNegative = Annotated[float, Field(ge=0, le=1e30)]  # within float32, and so is what becomes of it
Positive = Annotated[float, Field(gt=0, le=1e30)]
COMMAND = "pipe:"  # how a path begins that is a command for the shell, whose output is read
EVERY = r"^(\d+(?:\.\d+)?) ?(step|epoch|minute|hour)s?$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Amount = Annotated[int | float, AfterValidator(_amount)]
ExistingPath = Annotated[str, AfterValidator(_exists)]
Betas = Annotated[list[Momentum], Field(min_length=2, max_length=2)]
Frame = Count | Annotated[list[Count], Field(min_length=2, max_length=2)]
Color = Literal["rgb", "grayscale"]
Resize = Literal["crop", "pad", "stretch"]
OnBroken = Literal["stop", "skip"]
Activation = Literal["relu", "gelu", "silu", "elu", "leaky_relu", "tanh", "gated"]
Scale = Literal["per_pixel", "per_element", "shared", "optimal"] | Positive


class Settings(BaseModel):
    """Strictly typed, finite, closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Part(Settings):
    """A part: what to build and its keyword arguments."""

    target: str = Field(alias="_target_")

    @property
    def arguments(self) -> dict[str, Any]:
        """The part's own keyword arguments."""
        return self.model_dump(exclude={"target"})


class OwnPart(Part):
    """A user's part: any settings, which its own constructor checks."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class Data(Part):
    """What every data source shares; the rest are the source's own arguments."""

    binarize: Literal["auto", "dynamic", "static", "threshold", "none"]
    dequantize: bool
    standardize: bool | Literal["auto"]
    valid: Amount | None
    limit: Count | None
    seed: Seed
    limit_train: Count | None = None  # absent from runs that were stored without it
    test: Amount | None = None  # absent where the source brings its own test split

    @property
    def arguments(self) -> dict[str, Any]:
        """The source's own keyword arguments."""
        return self.model_dump(exclude={"target", *Data.model_fields})


class OwnData(Data):
    """A user's source."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class Vision(Data):
    """A torchvision data set with its own test split."""

    root: str
    test: None = Field(None, exclude=True)


class Emnist(Vision):
    """EMNIST."""

    split: Literal["balanced", "letters", "digits", "mnist", "bymerge", "byclass"]


class Omniglot(Data):
    """Omniglot."""

    root: str
    size: Count
    test: Amount


class CelebA(Vision):
    """CelebA, which has its own validation split as well."""

    valid: None
    size: Count
    crop: Annotated[int, Field(ge=1, le=178)]


class Digits(Data):
    """The embedded digits."""

    test: Amount


class Arrays(Data):
    """A user's arrays."""

    path: ExistingPath
    labels: str | None
    test: Amount


class Images(Data):
    """A user's pictures."""

    path: ExistingPath
    size: Frame
    resize: Resize
    color: Color
    on_broken: OnBroken
    test: Amount


class Shards(Data):
    """WebDataset shards, with their own splits."""

    path: str
    valid_path: str | None
    test_path: str | None
    index: str | None
    valid: None
    test: None = Field(None, exclude=True)
    size: Frame | None
    resize: Resize
    color: Color | None
    readers: Count
    buffer: Count
    on_broken: OnBroken


class HuggingFace(Data):
    """A data set of the Hugging Face hub."""

    path: str
    name: str | None
    split: str
    valid_split: str | None
    test_split: str | None
    test: Amount
    image: str | None
    label: str | None
    size: Frame | None
    resize: Resize
    color: Color | None
    streaming: bool
    examples: Count | None
    readers: Count
    buffer: Count


class Synthetic(Data):
    """Generated examples."""

    n: Count
    shape: Annotated[list[Count], Field(min_length=1, max_length=3)]
    classes: Annotated[int, Field(ge=0)]
    test: Amount


class Model(Part):
    """What every model shares."""

    latent_dim: Count


class MLP(Model):
    """Fully connected."""

    hidden: Annotated[list[Count], Field(min_length=1)]
    activation: Activation
    bias_from_data: bool


class Conv(Model):
    """Strided convolutions."""

    channels: Annotated[list[Count], Field(min_length=1)]
    hidden: list[Count]
    activation: Activation


class ResNet(Model):
    """Residual blocks."""

    channels: Annotated[list[Count], Field(min_length=1)]
    blocks: Count
    activation: Activation


class Ladder(Model):
    """Several stochastic layers."""

    below: Annotated[list[Count], Field(min_length=1)]
    hidden: Annotated[list[Count], Field(min_length=2)]
    depth: Count
    channels: list[Count]
    activation: Activation


class OwnModel(Model):
    """A user's model."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class LocationScale(Part):
    """Gaussian or Laplace."""

    scale: Scale
    min_scale: Positive

    @model_validator(mode="after")
    def _above_the_floor(self) -> LocationScale:
        if isinstance(self.scale, (int, float)) and self.scale < self.min_scale:
            raise UserError(
                f"likelihood.scale={self.scale:g}: at least likelihood.min_scale={self.min_scale:g} is allowed"
            )
        return self


class DiscretizedLogistic(Part):
    """Mixture of discretised logistics."""

    mixtures: Count


class Mixture(Part):
    """A learned Gaussian mixture."""

    components: Count


class Vamp(Mixture):
    """Pseudo-inputs through the encoder."""

    start: Literal["data", "noise"]


class Flow(Part):
    """A normalising flow."""

    transforms: Count
    hidden: Annotated[list[Count], Field(min_length=1)]


class PosteriorFlow(Flow):
    """An inverse autoregressive flow."""

    context: Count


class ConditionalPrior(Part):
    """A Gaussian for each condition."""

    hidden: list[Count]


class Objective(Part):
    """What every objective shares."""

    samples: Count


class IWAE(Objective):
    """The importance-weighted bound."""

    gradient: Literal["standard", "stl", "dreg"]


class BetaTC(Objective):
    """The decomposed KL."""

    alpha: NonNegative
    beta: NonNegative
    gamma: NonNegative
    weights: Literal["stratified", "weighted"]


class MMD(Objective):
    """InfoVAE."""

    weight: NonNegative
    kernel: Literal["rbf", "imq"]
    bandwidth: Positive | None


class Factor(Objective):
    """FactorVAE."""

    weight: NonNegative
    hidden: Annotated[list[Count], Field(min_length=1)]
    lr: Positive


class KL(Part):
    """What every schedule of the KL weight shares."""

    weight: NonNegative
    free_bits: NonNegative


class Warmup(KL):
    """A rise over so many epochs."""

    warmup: NonNegative


class SigmoidWarmup(Warmup):
    """A logistic rise."""

    steepness: Positive


class Cyclical(KL):
    """Repeated rises."""

    period: Positive
    ratio: Fraction
    cycles: Count


class Capacity(Warmup):
    """A target for the KL."""

    capacity: NonNegative


class OwnKL(KL):
    """A user's schedule."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class Label(Part):
    """Conditioning on labels or attributes."""

    embedding: Count | None


class Optimizer(Part):
    """What every optimizer shares."""

    lr: Positive
    weight_decay: NonNegative


class Adam(Optimizer):
    """The Adam family."""

    betas: Betas
    eps: Positive


class SGD(Optimizer):
    """Stochastic gradient descent."""

    momentum: Momentum
    nesterov: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGD:
        if self.nesterov and self.momentum == 0:
            raise UserError("optimizer.nesterov=true: has no effect with optimizer.momentum=0; more than 0 is allowed")
        return self


class OwnOptimizer(Part):
    """A user's optimizer."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)
    lr: Positive


class CosineLR(Part):
    """Half a cosine."""

    final: Fraction
    warmup: NonNegative


class StepLR(Part):
    """A staircase."""

    every: Positive
    factor: Annotated[float, Field(gt=0, le=1)]


class StagesLR(Part):
    """Stages of growing length."""

    stages: Annotated[int, Field(ge=1, le=50)]
    growth: Annotated[float, Field(ge=1, le=100)]
    final: Annotated[float, Field(gt=0, le=1)]


class WarmupLR(Part):
    """A linear rise."""

    warmup: NonNegative


class PlateauLR(Part):
    """A fall on every plateau."""

    patience: Count
    factor: Annotated[float, Field(gt=0, lt=1)]
    min: Fraction


class Trainer(Settings):
    """The loop."""

    epochs: Count
    steps: Count | None
    batch_size: Count
    accumulate: Count
    grad_clip: Positive | None
    ema: Annotated[float, Field(gt=0, lt=1)] | None
    early_stopping: Count | None
    prune: Count | None
    final: Literal["best", "last"]
    final_samples: Count
    log_likelihood_samples: Annotated[int, Field(ge=0)]
    log_likelihood_examples: Count | None
    validate_every: Positive
    on_nan: Literal["stop", "skip", "rollback"]
    checkpoint_every: Literal["auto"] | Count | Annotated[str, AfterValidator(_interval)]
    log_every: Count
    device: Literal["auto", "cpu", "cuda", "mps"]
    resident: bool | Literal["auto"]
    precision: Literal["fp32", "tf32", "bf16"]
    compile: bool
    cuda_graph: bool | Literal["auto"]
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    deterministic: bool


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


class Evaluate(Settings):
    """Settings of vae-eval."""

    run: str
    split: Literal["train", "valid", "test"]
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


class Export(Settings):
    """Settings of vae-export."""

    run: str
    format: Literal["onnx", "torch", "safetensors"]
    output: str | None
    trust: bool | list[str]


class Pack(Settings):
    """Settings of vae-data pack, beside the data's own."""

    out: str
    megabytes: Positive
    format: Literal["auto", "png", "npy"]
    workers: Count | None


class Config(Settings):
    """A whole configuration."""

    data: Data
    model: Model
    likelihood: Part
    prior: Part
    posterior: Part
    objective: Part
    kl: KL
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
        return self.model_dump(by_alias=True, serialize_as_any=True)


# What may stand under each group: the target of each of our options and its settings; then a user's own.
OPTIONS: dict[str, dict[str, type[Part]]] = {
    "data": {
        "vae_cli.data.embedded.digits": Digits,
        "vae_cli.data.embedded.synthetic": Synthetic,
        "vae_cli.data.vision.mnist": Vision,
        "vae_cli.data.vision.fashion_mnist": Vision,
        "vae_cli.data.vision.kmnist": Vision,
        "vae_cli.data.vision.qmnist": Vision,
        "vae_cli.data.vision.emnist": Emnist,
        "vae_cli.data.vision.omniglot": Omniglot,
        "vae_cli.data.vision.cifar10": Vision,
        "vae_cli.data.vision.svhn": Vision,
        "vae_cli.data.vision.celeba": CelebA,
        "vae_cli.data.files.arrays": Arrays,
        "vae_cli.data.files.images": Images,
        "vae_cli.data.shards.shards": Shards,
        "vae_cli.data.huggingface.huggingface": HuggingFace,
        "": OwnData,
    },
    "model": {
        "vae_cli.model.mlp.MLP": MLP,
        "vae_cli.model.conv.Conv": Conv,
        "vae_cli.model.resnet.ResNet": ResNet,
        "vae_cli.model.linear.Linear": Model,
        "vae_cli.model.ladder.Ladder": Ladder,
        "": OwnModel,
    },
    "likelihood": {
        "vae_cli.likelihood.Bernoulli": Part,
        "vae_cli.likelihood.ContinuousBernoulli": Part,
        "vae_cli.likelihood.Gaussian": LocationScale,
        "vae_cli.likelihood.Laplace": LocationScale,
        "vae_cli.likelihood.DiscretizedLogistic": DiscretizedLogistic,
        "vae_cli.likelihood.Categorical": Part,
        "": OwnPart,
    },
    "prior": {
        "vae_cli.prior.Standard": Part,
        "vae_cli.prior.Mixture": Mixture,
        "vae_cli.prior.Vamp": Vamp,
        "vae_cli.prior.Flow": Flow,
        "vae_cli.prior.Conditional": ConditionalPrior,
        "": OwnPart,
    },
    "posterior": {
        "vae_cli.posterior.Gaussian": Part,
        "vae_cli.posterior.FullGaussian": Part,
        "vae_cli.posterior.Flow": PosteriorFlow,
        "": OwnPart,
    },
    "objective": {
        "vae_cli.objective.ELBO": Objective,
        "vae_cli.objective.IWAE": IWAE,
        "vae_cli.objective.BetaTC": BetaTC,
        "vae_cli.objective.MMD": MMD,
        "vae_cli.objective.Factor": Factor,
        "": OwnPart,
    },
    "kl": {
        "vae_cli.schedule.Constant": KL,
        "vae_cli.schedule.Linear": Warmup,
        "vae_cli.schedule.Cosine": Warmup,
        "vae_cli.schedule.Sigmoid": SigmoidWarmup,
        "vae_cli.schedule.Cyclical": Cyclical,
        "vae_cli.schedule.Capacity": Capacity,
        "": OwnKL,
    },
    "conditional": {
        "vae_cli.conditioning.Unconditional": Part,
        "vae_cli.conditioning.Label": Label,
        "": OwnPart,
    },
    "optimizer": {
        "vae_cli.optimizer.Adam": Adam,
        "vae_cli.optimizer.AdamW": Adam,
        "torch.optim.Adamax": Adam,
        "torch.optim.SGD": SGD,
        "": OwnOptimizer,
    },
    "lr_schedule": {
        "vae_cli.schedule.ConstantLR": Part,
        "vae_cli.schedule.CosineLR": CosineLR,
        "vae_cli.schedule.StepLR": StepLR,
        "vae_cli.schedule.StagesLR": StagesLR,
        "vae_cli.schedule.WarmupLR": WarmupLR,
        "vae_cli.schedule.PlateauLR": PlateauLR,
        "": OwnPart,
    },
}


def every(amount: int | str) -> tuple[float, str]:
    """Return how much of what passes between two checkpoints: 1000 is (1000, steps), "2 hours" (120, minutes)."""
    found = re.match(EVERY, str(amount))
    if not found:
        return float(amount), "steps"
    return (60.0 * float(found[1]), "minutes") if found[2] == "hour" else (float(found[1]), f"{found[2]}s")


def command(content: Any, trust: bool | Sequence[str] = False) -> str | None:
    """Return the setting, of a group of settings from elsewhere, that would run a command nobody trusts, else None.

    Args:
        content: its settings.
        trust: everything (true), or what is trusted by name: `pipe` for commands.
    """
    values = content.items() if isinstance(content, dict) else ()
    found = next((key for key, value in values if isinstance(value, str) and value.startswith(COMMAND)), None)
    trusted = trust is True or (not isinstance(trust, bool) and COMMAND.rstrip(":") in trust)
    return None if trusted else found


def foreign(group: str, content: Any, trust: bool | Sequence[str] = False) -> str | None:
    """Return the target under a group of settings from elsewhere where it is neither ours nor trusted, else None.

    Ours are the targets of our options alone: a name that merely begins with vae_cli could be any function there.

    Args:
        group: of options.
        content: its settings.
        trust: everything (true), or packages by name.
    """
    target = str(content.get("_target_") or "") if isinstance(content, dict) else ""
    ours = target in OPTIONS.get(group, {}) or (group == "optimizer" and re.fullmatch(r"torch\.optim\.\w+", target))
    packages = () if isinstance(trust, bool) else trust
    trusted = trust is True or target.partition(".")[0] in packages
    return target if target and not ours and not trusted else None
