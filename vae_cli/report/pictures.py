"""Examples become pictures: [rows, columns, *shape] → one uint8 picture [H, W, 3]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_cli.batch import Batch
from vae_cli.data import Resident, Spec
from vae_cli.vae import VAE

GAP = 1 / 28  # of a picture's longer side that is left between the pictures of a grid
RULE = (86, 140, 196)  # the colour of the gap: apart from every grey, on light and on dark pages
SMALL, LARGE = 56, 128  # pixels a side that pictures are magnified towards, and reduced to
MEMORY = 2**25  # elements of examples that are looked at together at most, where fewer would do
FEW = 64  # examples that are looked at together however large they are


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether examples of that shape, [H, W] or [C, H, W] with 1 or 3 channels, can be shown as pictures."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def grid(x: Tensor, spec: Spec, *, largest: int | None = LARGE) -> Tensor:
    """Lay pictures [rows, columns, *shape] out on a grid [H, W, 3], uint8, with a coloured rule between them.

    Values are scaled from the data's own range. Small pictures are magnified, and those beyond `largest` pixels a side
    are reduced. Missing pixels (NaN) have the colour of the rule.
    """
    rows, columns = x.shape[:2]
    tiles = _bytes(_sized(_unit(x, spec).reshape(rows * columns, -1, *spec.shape[-2:]), largest))
    height, width = tiles.shape[-2:]
    gap = max(1, round(GAP * max(height, width)))
    rule = torch.tensor(RULE, dtype=torch.uint8).view(3, 1, 1)
    ruled = rule.repeat(rows * columns, 1, height + gap, width + gap)
    ruled[..., :height, :width] = tiles
    laid_out = ruled.view(rows, columns, 3, height + gap, width + gap).permute(0, 3, 1, 4, 2)
    return laid_out.flatten(0, 1).flatten(1, 2)[:-gap, :-gap]


def sprites(x: Tensor, spec: Spec, largest: int | None = None) -> Tensor | None:
    """Return square pictures [N, 3, H, H] in [0, 1] of examples [N, *shape], or None where they are no pictures."""
    if not is_picture(spec.shape):
        return None
    x = _unit(x, spec).reshape(len(x), -1, *spec.shape[-2:])
    if largest is not None:
        x = _reduced(x, largest)
    side = max(x.shape[-2:])
    return F.pad(x.expand(-1, 3, -1, -1), (0, side - x.shape[-1], 0, side - x.shape[-2]))


def _unit(x: Tensor, spec: Spec) -> Tensor:
    low, high = spec.low, spec.high if spec.high > spec.low else spec.low + 1.0
    return ((x.float().cpu() - low) / (high - low)).clamp(0.0, 1.0)


def _sized(x: Tensor, largest: int | None) -> Tensor:
    """Magnify small pictures [N, C, H, W] by a whole factor; reduce large ones."""
    factor = max(1, SMALL // max(x.shape[-2:]))
    x = x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    return x if largest is None else _reduced(x, largest)


def _reduced(x: Tensor, largest: int) -> Tensor:
    """Reduce pictures [N, C, H, W] to so many pixels on their longer side, where they have more."""
    share = largest / max(x.shape[-2:])
    if share >= 1.0:
        return x
    return F.interpolate(x, [max(1, round(side * share)) for side in x.shape[-2:]], mode="area")


def _bytes(x: Tensor) -> Tensor:
    """Return values [N, C, H, W] in [0, 1] as bytes, NaN as the colour of the rule in every channel."""
    missing = x.isnan()
    if not missing.any():
        return x.mul(255.0).round_().to(torch.uint8)
    found = x.nan_to_num(0.0).mul(255.0).round_().to(torch.uint8).expand(-1, 3, -1, -1)
    return torch.where(missing.any(1, keepdim=True), torch.tensor(RULE, dtype=torch.uint8).view(3, 1, 1), found)


def spread(n: int, y: Tensor | None, most: int) -> Tensor:
    """Return the indices of `most` of n examples (all, where there are no more): a mix, however they are sorted.

    With classes y [n], one example of each class after the other; else examples evenly apart.
    """
    most = min(most, n)
    if y is None or y.ndim != 1:
        return torch.linspace(0, n - 1, most).round().long()
    y = y.cpu()
    order = y.argsort(stable=True)
    counts = torch.bincount(y)
    rank = torch.empty(n, dtype=torch.long)  # of each example among those of its class
    rank[order] = torch.arange(n) - (counts.cumsum(0) - counts)[y[order]]
    return (rank * len(counts) + y).argsort()[:most]


def mix(data: Resident, most: int, *, balanced: bool = True) -> Batch:
    """Return a mix of at most `most` examples; of large ones, fewer.

    `balanced` takes the classes in turn; else they keep their shares.
    """
    fewer = min(most, max(FEW, MEMORY // max(1, math.prod(data.examples.shape))))
    return data.batch(spread(len(data), data.examples.y if balanced else None, fewer).to(data.device))


@torch.no_grad()
def reconstructions(vae: VAE, data: Resident, n: int = 16) -> Tensor:
    """Return a mix of n examples above means (or draws) of p(x|z), z the mean of q(z|x): [2, n, *shape]."""
    batch = mix(data, n)
    made = vae.likelihood.picture(vae.decode(vae.code_of(batch), batch.y))
    return torch.stack([batch.gapped, made])


@torch.no_grad()
def samples(vae: VAE, data: Resident, rows: int = 4, columns: int = 16) -> Tensor:
    """Return means (or draws) of p(x|z) for draws of the prior, labels taken from the data: [rows, columns, *shape]."""
    n, y = rows * columns, data.examples.y
    if y is not None:
        index = spread(len(y), y, n)
        y = y[index[torch.arange(n) % len(index)].to(y.device)].to(data.device)
    return vae.sample(n, y).view(rows, columns, *vae.shape)


def by_information(vae: VAE, kl: Tensor | None, means: Tensor) -> Tensor:
    """Return the latent units, that of the largest KL first, or, where it is not known, of the widest means.

    Args:
        vae: knows its units.
        kl: of each unit, if there are as many columns [C].
        means: of q(z|x), [N, D].
    """
    known = kl is not None and len(kl) == sum(vae.latent.units)
    return (kl if known else vae.latent.by_unit(means.var(0))).argsort(descending=True)  # type: ignore[union-attr]


@torch.no_grad()
def traversals(
    vae: VAE, data: Resident, kl: Tensor, n: int = 500, most: int = 10, steps: int = 12
) -> tuple[Tensor, list[int]]:
    """Return codes with one unit moved at a time, decoded, [K, steps, *shape], and the K units.

    Rows stand in the order of `kl` [D], the most informative unit first; where the KL is not known by unit, in
    that of the variance of the codes. Each starts from another example of a mix.
    """
    means = vae.encode(mix(data, n, balanced=False)).mean
    order = by_information(vae, kl, means)[:most].to(means.device)
    batch = mix(data, len(order))
    start = torch.arange(len(order), device=means.device) % len(batch.x)
    offsets = torch.linspace(-2.5, 2.5, steps, device=means.device)
    codes = vae.latent.traverse(vae.code_of(batch)[start], means, order, offsets)
    label = None if batch.y is None else batch.y[start].repeat_interleave(codes.shape[1], 0)
    made = vae.likelihood.picture(vae.decode(codes.flatten(0, 1), label)).view(*codes.shape[:2], *vae.shape)
    return made, order.tolist()


@torch.no_grad()
def codes(vae: VAE, data: Resident, n: int = 2000) -> tuple[Tensor, Tensor | None]:
    """Return the means of q(z|x) [n, D] of n examples evenly apart and their labels, on the CPU."""
    index = spread(len(data), None, n).to(data.device)
    at_once = max(1, min(500, MEMORY // max(1, math.prod(vae.shape))))
    batches = [data.batch(part) for part in index.split(at_once)]
    means, labels = zip(*((vae.encode(batch).mean.cpu(), batch.y) for batch in batches), strict=True)
    return torch.cat(means), None if labels[0] is None else torch.cat(labels).cpu()


def thumbnails(data: Resident, n: int, spec: Spec, side: int) -> Tensor | None:
    """Return square pictures [n, 3, H, H] in [0, 1] of the examples of `codes`, of `side` pixels at most."""
    if not is_picture(spec.shape):
        return None
    parts = spread(len(data), None, n).to(data.device).split(FEW)
    found = [sprites(data.batch(part).x, spec, side) for part in parts]
    return torch.cat([each for each in found if each is not None])


def plane(codes: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Return codes [N, D] in two dimensions [N, 2], and the names of the two: z itself, or its principal components."""
    if codes.shape[1] == 2:
        return codes, ("z0", "z1")
    if min(codes.shape) < 2:
        return torch.cat([codes[:, :1], torch.zeros_like(codes[:, :1])], 1), ("z0", "")
    centred = codes - codes.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    shares = s.square() / s.square().sum().clamp(min=1e-12)
    first, second = (f"principal component {k + 1} ({shares[k]:.0%} of the variance)" for k in range(2))
    return u[:, :2] * s[:2], (first, second)


@torch.no_grad()
def class_samples(vae: VAE, data: Resident, spec: Spec, columns: int = 12, most: int = 64) -> tuple[Tensor, list[str]]:
    """Return one row of samples a class (at most `most`), or one for each of ten attribute vectors, and row names."""
    y = data.examples.y
    assert y is not None
    if spec.classes:
        kinds = torch.arange(min(spec.classes, most), device=data.device)
        names = list((spec.names or ())[: len(kinds)])
    else:
        kinds, names = y[:10].to(data.device), [f"example {k}" for k in range(len(y[:10]))]
    x = vae.sample(len(kinds) * columns, kinds.repeat_interleave(columns, 0))
    return x.view(len(kinds), columns, *x.shape[1:]), names
