"""Examples become pictures: [rows, columns, *shape] → one uint8 picture [H, W, 3]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vae_cli.data import Resident, Spec
from vae_cli.vae import VAE

GAP = 1  # pixels between the pictures of a grid
GREY = 128  # of the gap
STRIPE = 256  # elements shown at most of an example that is no picture


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether examples of that shape, [H, W] or [C, H, W] with 1 or 3 channels, can be shown as pictures."""
    return len(shape) == 2 or (len(shape) == 3 and shape[0] in (1, 3))


def grid(x: Tensor, spec: Spec) -> Tensor:
    """Lay examples [rows, columns, *shape] out on a grid [H, W, 3], uint8.

    Examples that are no pictures become stripes: each row of the grid is a block of stripes, the blocks stand side by
    side. Values are scaled from the data's own range; small pictures are magnified.
    """
    rows, columns = x.shape[:2]
    x = _bytes(_unit(x, spec))
    if not is_picture(spec.shape):
        x = x.reshape(rows, columns, -1)
        x = x[..., :: -(-x.shape[-1] // STRIPE)]
        blocks = F.pad(x, (0, GAP), value=GREY).transpose(0, 1)
        return _laid_out(_magnify(blocks.reshape(1, 1, 1, columns, -1), 8))
    x = x.reshape(rows, columns, -1, *spec.shape[-2:])
    return _laid_out(_magnify(F.pad(x, (0, GAP, 0, GAP), value=GREY), max(1, 56 // max(spec.shape[-2:]))))


def sprites(x: Tensor, spec: Spec) -> Tensor | None:
    """Return square pictures [N, 3, H, H] in [0, 1] of examples [N, *shape], or None where they are no pictures."""
    if not is_picture(spec.shape):
        return None
    x = _unit(x, spec).reshape(len(x), -1, *spec.shape[-2:]).expand(-1, 3, -1, -1)
    side = max(x.shape[-2:])
    return F.pad(x, (0, side - x.shape[-1], 0, side - x.shape[-2]))


def _unit(x: Tensor, spec: Spec) -> Tensor:
    low, high = spec.low, spec.high if spec.high > spec.low else spec.low + 1.0
    return ((x.float().cpu() - low) / (high - low)).clamp(0.0, 1.0)


def _magnify(x: Tensor, factor: int) -> Tensor:
    return x.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _bytes(x: Tensor) -> Tensor:
    return x.mul(255.0).round_().to(torch.uint8)


def _laid_out(x: Tensor) -> Tensor:
    """[rows, columns, C, H, W] → [rows · H, columns · W, 3]; three channels of grey are one in memory."""
    return x.permute(0, 3, 1, 4, 2).flatten(0, 1).flatten(1, 2).expand(-1, -1, 3)


@torch.no_grad()
def reconstructions(vae: VAE, data: Resident, n: int = 16) -> Tensor:
    """Return the first n examples above the means of p(x|z), z the mean of q(z|x): [2, n, *shape]."""
    x, y = data.batch(slice(0, n))
    return torch.stack([x, vae.decode(vae.encode(x, y).mean, y).mean])


@torch.no_grad()
def samples(vae: VAE, data: Resident, rows: int = 4, columns: int = 16) -> Tensor:
    """Return means of p(x|z) for draws of the prior, labels taken from the data: [rows, columns, *shape]."""
    n, y = rows * columns, data.examples.y
    if y is not None:
        y = y[torch.arange(n, device=y.device) % min(n, len(y))].to(data.device)
    return vae.sample(n, y).view(rows, columns, *vae.shape)


def moved(z: Tensor, means: Tensor, dimensions: Tensor, offsets: Tensor) -> Tensor:
    """Return codes [K, S, D]: z [D] with each of K dimensions at S offsets, in standard deviations of means [N, D]."""
    codes = z.repeat(len(dimensions), len(offsets), 1)
    for row, j in zip(codes, dimensions.tolist(), strict=True):
        row[:, j] = means[:, j].mean() + offsets * means[:, j].std(correction=0).clamp(min=0.1)
    return codes


def by_information(kl: Tensor | None, means: Tensor) -> Tensor:
    """Return the latent dimensions, that of the largest KL [D] first, or, where it is not known, of the widest means.

    Args:
        kl: of each dimension, or None.
        means: of q(z|x), [N, D].
    """
    return (kl if kl is not None else means.var(0)).argsort(descending=True)


@torch.no_grad()
def traversals(vae: VAE, data: Resident, kl: Tensor, n: int = 500, most: int = 10, steps: int = 12) -> Tensor:
    """Return the first example with one dimension of its code moved at a time: [dimensions, steps, *shape].

    Rows stand in the order of `kl` [D], the most informative first; where the KL is not known by dimension, in that of
    the variance of the codes.
    """
    x, y = data.batch(slice(0, n))
    means = vae.encode(x, y).mean
    order = by_information(kl if len(kl) == means.shape[1] else None, means)[:most].to(means.device)
    codes = moved(means[0], means, order, torch.linspace(-2.5, 2.5, steps, device=means.device))
    label = None if y is None else y[:1].expand(codes.shape[0] * steps, *y.shape[1:])
    return vae.decode(codes.flatten(0, 1), label).mean.view(*codes.shape[:2], *vae.shape)


@torch.no_grad()
def codes(vae: VAE, data: Resident, n: int = 2000) -> tuple[Tensor, Tensor | None]:
    """Return the means of q(z|x) [n, D] of the first n examples and their labels, on the CPU."""
    means, labels = zip(*((vae.encode(*batch).mean.cpu(), batch[1]) for batch in data.batches(500, n)), strict=True)
    return torch.cat(means), None if labels[0] is None else torch.cat(labels).cpu()


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
