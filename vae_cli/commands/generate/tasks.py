"""The tasks: each takes a trained model and a folder, writes pictures and arrays there, and returns their paths."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from vae_cli.api import Trained
from vae_cli.commands.generate import latent, samplers
from vae_cli.commands.generate.impute import impute
from vae_cli.commands.generate.saving import save
from vae_cli.commands.generate.scoring import anomaly
from vae_cli.commands.generate.sources import MANY, Examples, read_codes
from vae_cli.config.types import Condition, Count, CountOrNone, ExistingPath, Indices, Positive, TwoOrMore
from vae_cli.data.inputs import class_number
from vae_cli.report import drawing
from vae_cli.report.drawing import COLUMNS
from vae_cli.system.errors import UserError

__all__ = [
    "anomaly",
    "decode",
    "encode",
    "impute",
    "interpolate",
    "manifold",
    "reconstruct",
    "sample",
    "transfer",
    "traverse",
]


def sample(
    model: Trained,
    folder: Path,
    *,
    n: Count,
    condition: Condition,
    temperature: Positive,
    sampler: Literal["prior", "gaussian_mixture", "flow"],
    means: bool,
) -> list[Path]:
    """Draw n examples, or n of every class, of the prior or of a sampler of the aggregate posterior."""
    y, names = _conditions(model, condition, n)
    count = n if y is None or not names else len(y)
    if sampler == "prior":
        z = model.prior_sample(count, y, temperature=temperature)
    else:
        _refuse_conditional(model, f"task.sampler={sampler}")
        _refuse_discrete(model, f"task.sampler={sampler}", "prior")
        z = samplers.draw(sampler, model, count, temperature)
    p = model.decode(z, y)
    x = model.picture(p) if means else p.sample()
    rows = len(names) or -(-count // COLUMNS)
    shown = [x[k * n : k * n + COLUMNS] for k in range(rows)] if names else list(x.split(COLUMNS))
    title = f"{_word(model, means)}s of p(x|z), z from {'the prior' if sampler == 'prior' else sampler}"
    return [
        drawing.grid(model.spec, shown[:32], folder / "samples.png", title, names[:32]),
        save(folder / "samples.npz", x=x, z=_shaped(model, z), **({} if y is None else {"y": y})),
    ]


def reconstruct(model: Trained, folder: Path, *, examples: Examples, n: Count, means: bool) -> list[Path]:
    """Put n examples above what the model makes of them."""
    index = examples.some(n)
    x, y = examples.at(index)
    p = model.decode(model.code_of(x, y), y)
    made = model.picture(p) if means else p.sample()
    path, names = folder / "reconstructions.png", ("data", f"{_word(model, means)} of p(x|z)")
    return [
        drawing.pairs(model.spec, x, made, path, "reconstructions", names),
        save(folder / "reconstructions.npz", x=x, reconstruction=made, index=index),
    ]


def interpolate(
    model: Trained,
    folder: Path,
    *,
    examples: Examples,
    indices: Indices,
    steps: TwoOrMore,
    kind: Literal["spherical", "linear"],
) -> list[Path]:
    """Walk between the codes of two or more examples; the ends of each leg are the examples' reconstructions.

    Conditional runs mix the conditions c of the two ends on the way as they mix the codes.
    """
    x, y = examples.chosen(indices, f"task.indices={list(indices)}")
    z = model.code_of(x, y)
    legs = [latent.walk(model, a, b, steps, kind) for a, b in pairwise(z)]
    with torch.no_grad():
        c = model.vae.conditioning(y)
        mixed = [None] * len(legs) if c is None else [latent.between(a, b, steps, "linear") for a, b in pairwise(c)]
        made = [model.picture(model.rescaled(model.vae.decode_given(*way))) for way in zip(legs, mixed, strict=True)]
    names = [f"{a} →\n{b}" for a, b in pairwise(_called(examples, index) for index in indices)]
    title = ("latents changed one by one" if model.discrete else f"{kind} interpolation of codes") + (
        ", labels mixed on the way" if c is not None else ""
    )
    return [
        drawing.grid(model.spec, made, folder / "interpolation.png", title, names),
        drawing.animation(model.spec, torch.cat(made), folder / "interpolation.gif"),
        save(folder / "interpolation.npz", x=torch.stack(made), z=_shaped(model, torch.stack(legs))),
    ]


def traverse(
    model: Trained,
    folder: Path,
    *,
    examples: Examples,
    index: CountOrNone,
    dimensions: Count,
    steps: TwoOrMore,
    range: Positive,
) -> list[Path]:
    """Move one dimension of an example's code at a time, over ± range aggregate standard deviations, by KL.

    Of codes of classes, one latent at a time takes its classes in turn, `steps` of them at most.
    """
    x, y = examples.at(examples.some(MANY))
    means = model.posterior(x, y).mean
    order = latent.by_information(model, x, y)[:dimensions]
    one, label = examples.chosen([index], f"task.index={index}")
    z = model.code_of(one, label)
    codes = model.vae.latent.traverse(z[0], means, order, torch.linspace(-range, range, steps, device=z.device))
    labels = None if label is None else label.expand(codes.shape[1], *label.shape[1:])
    made = [model.picture(model.decode(row, labels)) for row in codes]
    names = [f"z{int(j)}" for j in order]
    title = f"each {model.vae.latent.moved.format(range)}, most informative first"
    return [
        drawing.grid(model.spec, made, folder / "traversal.png", title, names),
        drawing.animation_of_rows(model.spec, made, folder / "traversal.gif"),
        save(folder / "traversal.npz", x=torch.stack(made), dimensions=order),
    ]


def manifold(model: Trained, folder: Path, *, n: TwoOrMore, condition: Condition) -> list[Path]:
    """Decode a grid of quantiles of N(0, I) in a two-dimensional latent space."""
    _refuse_discrete(model, "task=manifold", "a latent of numbers")
    if model.latent_dim != 2:
        raise UserError(
            f"task=manifold: the run has {model.latent_dim} latent dimensions; model.latent_dim=2 is allowed"
        )
    quantiles = torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()
    z = torch.stack(torch.meshgrid(-quantiles, quantiles, indexing="ij")[::-1], dim=-1)
    if model.conditional and condition in ("all", None):
        given = "null" if condition is None else condition
        raise UserError(
            f"task.condition={given}: the run is conditional; one class, or one list of attributes, is needed"
        )
    y, _ = _conditions(model, condition, n)
    made = [model.picture(model.decode(row, y)) for row in z]
    title = "p(x|z) over the quantiles of N(0, I): z0 to the right, z1 upwards"
    return [
        drawing.grid(model.spec, made, folder / "manifold.png", title),
        save(folder / "manifold.npz", x=torch.stack(made), z=z),
    ]


def transfer(model: Trained, folder: Path, *, examples: Examples, n: Count) -> list[Path]:
    """Decode the codes of n examples under every class: the same z, another label."""
    classes = model.spec.classes
    if not model.conditional or classes is None:
        raise UserError("task=transfer: the run has no classes to choose from; conditional=label is needed in training")
    index = examples.some(n)
    x, y = examples.at(index)
    z = model.code_of(x, y)
    made = torch.stack([model.picture(model.decode(z, torch.full((len(z),), k))).cpu() for k in range(classes)])
    rows = [x.cpu(), *made][: drawing.ROWS]
    names = ["data", *(model.spec.names or ())][: drawing.ROWS]
    return [
        drawing.grid(model.spec, rows, folder / "transfer.png", "the same z under each class", names),
        save(folder / "transfer.npz", x=x, z=_shaped(model, z), transferred=made, index=index),
    ]


def encode(model: Trained, folder: Path, *, examples: Examples) -> list[Path]:
    """Write the means and standard deviations of q(z|x) of all examples [N, *code], with their labels.

    Of codes of classes z is one-hot, the likeliest class of each latent, and `classes` [N, D] are their numbers.
    """
    codes, scales = [], []
    for x, y in examples.batches(MANY):
        q = model.posterior(x, y)
        codes.append(model.vae.latent.code_of(q).cpu())
        scales.append(_deviation(q).cpu())
    z = torch.cat(codes)
    more = {"classes": model.vae.latent.classes_of(z)} if model.discrete else {}
    labels = {} if examples.y is None else {"y": examples.y}
    scale = _shaped(model, torch.cat(scales))
    return [save(folder / "codes.npz", z=_shaped(model, z), scale=scale, **more, **labels)]


def decode(model: Trained, folder: Path, *, codes: ExistingPath, means: bool) -> list[Path]:
    """Decode codes z [N, D] or [N, *code] (and labels y) of an .npz or .npy."""
    z, y = read_codes(codes, model)
    made = []
    for start in range(0, len(z), MANY):
        p = model.decode(z[start : start + MANY], None if y is None else y[start : start + MANY])
        made.append((model.picture(p) if means else p.sample()).cpu())
    x = torch.cat(made)
    return [
        drawing.grid(model.spec, list(x[: 32 * COLUMNS].split(COLUMNS)), folder / "decoded.png", "decoded codes"),
        save(folder / "decoded.npz", x=x),
    ]


def _word(model: Trained, means: bool) -> str:
    """Return what is shown of p(x|z): mean or draw."""
    return str(model.vae.likelihood.display) if means else "draw"


def _conditions(model: Trained, condition: Any, n: int) -> tuple[Any, list[str]]:
    """Return labels for a number of draws, and the names of the rows where every class has one."""
    if not model.conditional:
        if condition is not None:
            raise UserError(f"task.condition={condition}: has no effect, the run is not conditional")
        return None, []
    classes = model.spec.classes
    if classes is None:
        if not isinstance(condition, list) or len(condition) != model.spec.attributes:
            wanted = f"a list of {model.spec.attributes} attributes"
            raise UserError(f"task.condition={condition}: {wanted} is allowed")
        return torch.tensor(condition).expand(n, -1), []
    if condition in ("all", None):
        return torch.arange(classes).repeat_interleave(n), list(model.spec.names or ())
    return torch.full((n,), _class(model, condition)), []


def _class(model: Trained, condition: Any) -> int:
    """Return the number of the class that a setting chooses, by number or name."""
    given, classes = f"task.condition={condition}", model.spec.classes or 0
    if isinstance(condition, str):
        try:
            return class_number(model.spec.names or (), condition, given)
        except ValueError as error:
            raise UserError(f"{error}, or all") from None
    if not isinstance(condition, int) or not 0 <= condition < classes:
        raise UserError(f"{given}: a class from 0 to {classes - 1}, its name, or all, is allowed")
    return condition


def _called(examples: Examples, index: int) -> str:
    """Return what an example is called: its index, and the name of its class where the run knows it."""
    names, y = examples.model.spec.names, examples.y
    if names is None or y is None or y.ndim != 1 or (examples.own and not examples.model.conditional):
        return f"example {index}"
    return f"example {index} (class {names[int(y[index])]})"


def _refuse_conditional(model: Trained, what: str) -> None:
    if model.conditional:
        raise UserError(f"{what}: its codes know no labels, and the run is conditional; prior is allowed")


def _refuse_discrete(model: Trained, what: str, allowed: str) -> None:
    if model.discrete:
        raise UserError(f"{what}: the run's codes are classes; {allowed} is allowed")


def _shaped(model: Trained, z: Tensor) -> Tensor:
    """Return codes [..., D] in their own shape."""
    return z.unflatten(-1, model.code_shape)


def _deviation(q: Any) -> Tensor:
    try:
        return q.stddev
    except NotImplementedError:
        return q.sample((64,)).std(0)
