"""Ways through the latent space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_cli.api import Trained
from vae_cli.report import pictures


def walk(model: Trained, a: Tensor, b: Tensor, steps: int, kind: str) -> Tensor:
    """Return `steps` codes from a [D] to b [D], ends included, as the latent of a model walks; see `between`.

    Classes have no line between them: of discrete codes the latents that differ change one by one, whatever the kind.
    """
    if model.discrete or kind == "linear":
        return model.vae.latent.walk(a, b, torch.linspace(0.0, 1.0, steps, device=a.device))
    return between(a, b, steps, kind)


def between(a: Tensor, b: Tensor, steps: int, kind: str) -> Tensor:
    """Return `steps` codes from a [D] to b [D], ends included: along a line, or along a great circle (`spherical`).

    The spherical way turns the direction evenly and changes the length evenly (White 2016); opposite or vanishing
    codes have no great circle between them, and a line is taken.
    """
    t = torch.linspace(0.0, 1.0, steps, device=a.device).unsqueeze(1)
    line = a + t * (b - a)
    lengths = a.norm(), b.norm()
    cosine = (a @ b / (lengths[0] * lengths[1]).clamp(min=1e-12)).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    if kind == "linear" or float(angle.sin()) < 1e-4 or float(min(lengths)) < 1e-6:
        return line
    direction = (torch.sin((1 - t) * angle) * a / lengths[0] + torch.sin(t * angle) * b / lengths[1]) / angle.sin()
    way = direction * (lengths[0] + t * (lengths[1] - lengths[0]))
    way[0], way[-1] = a, b
    return way


def by_information(model: Trained, x: Tensor, y: Any) -> Tensor:
    """Return the latent units (dimensions, or latents of classes), that of the largest KL over examples x first.

    Where the KL is not known by unit, the variance of the posterior mean stands for it.
    """
    return pictures.by_information(model.vae, model.kl_by_dimension(x, y), model.posterior(x, y).mean)
