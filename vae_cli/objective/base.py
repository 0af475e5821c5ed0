"""The contract of an objective: Output → the scalar to minimise and the named terms to report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vae_cli.batch import JOINT, Batch, gather, mean
from vae_cli.latent import Draw
from vae_cli.system import randomness
from vae_cli.vae import VAE, Output


@dataclass
class Terms:
    """The loss, and the terms that are reported."""

    loss: Tensor  # []
    elbo: Tensor  # []
    reconstruction: Tensor  # [] mean log p(x|z)
    kl: Tensor  # []
    extra: dict[str, Tensor] = field(default_factory=dict)  # [] each, the objective's own terms and the latent's


@dataclass
class Penalty:
    """What the KL costs: β · Σ_j max(λ, mean over the batch of KL_j), or β · |KL − C| where there is a target.

    The mean stands inside the maximum (Kingma et al. 2016, eq. 16); |KL − C| is Burgess et al. 2018, eq. 8. Where a
    layer's d dimensions are not independent, one maximum with d·λ stands for them all.

    Attributes:
        weight: β.
        free_bits: λ, nats for each latent dimension.
        target: C, nats, or None.

    >>> from vae_cli.latent import Draw
    >>> from vae_cli.distribution import diagonal
    >>> q = diagonal(torch.zeros(5, 2), torch.ones(5, 2))
    >>> kl = torch.tensor([[0.1, 3.0]]).expand(5, 2)
    >>> draw = Draw(z=q.rsample((1,)), q=q, p=q, kl=kl, layers=((2, 2),), parameters=torch.zeros(5, 4))
    >>> [round(float(each(draw)), 4) for each in (Penalty(), Penalty(free_bits=0.5), Penalty(weight=4.0, target=3.0))]
    [3.1, 3.5, 0.4]
    """

    weight: Tensor | float = 1.0
    free_bits: float = 0.0
    target: Tensor | float | None = None

    def __call__(self, draw: Draw) -> Tensor:
        """Return the cost [] of a draw's KL, nats."""
        by_column = draw.kl.mean(0)
        if (
            self.free_bits > 0.0 or self.target is not None
        ):  # the mean of the whole batch comes first: neither is linear
            by_column = mean(by_column)
        if self.free_bits > 0.0:
            parts = zip(by_column.split([columns for columns, _ in draw.layers]), draw.layers, strict=True)
            by_column = torch.cat(
                [part.clamp(min=self.free_bits * units / columns) for part, (columns, units) in parts]
            )
        total = by_column.sum()
        return self.weight * (total if self.target is None else (total - self.target).abs())


class Objective(nn.Module):
    """Base of the objectives: subclasses say what is minimised in `loss`.

    Attributes:
        extra: names of the terms reported besides ELBO, reconstruction and KL.
        selection: name of the number that the best weights are chosen by, `valid/…`: elbo, or bound (of `samples`).
        joins: whether the loss compares the examples of a batch (more than a mean): it then sees those of all ranks.

    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose(), Spec((4,), 2, 0.0, 1.0))  # four binary elements
    >>> class Reconstruction(Objective):
    ...     def loss(self, vae, output, penalty):
    ...         return -output.log_likelihood.mean(), {}
    >>> terms = Reconstruction(samples=1)(vae, Batch(torch.ones(5, 4)), Penalty())
    >>> bool(terms.loss == -terms.reconstruction)
    True
    """

    extra: tuple[str, ...] = ()
    selection = "elbo"
    joins = False

    def __init__(self, *, samples: int):
        super().__init__()
        self.samples = samples

    def forward(self, vae: VAE, batch: Batch, penalty: Penalty) -> Terms:
        """Return the terms of a batch, whose KL costs what `penalty` says."""
        with randomness.own_rows():
            output = vae(batch, samples=self.samples)
        if self.joins:
            output = gather_ranks(vae, output)
        reconstruction, kl = output.log_likelihood.detach().mean(), output.kl.detach().sum(-1).mean()
        loss, extra = self.loss(vae, output, penalty)
        for name, term in output.draw.extra.items():
            loss, extra = loss + term, extra | {name: term.detach()}
        return Terms(loss, reconstruction - kl, reconstruction, kl, extra)

    def loss(self, vae: VAE, output: Output, penalty: Penalty) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise and the objective's own terms."""
        raise NotImplementedError("an objective says what is minimised in `loss`")

    def groups(self) -> list[dict[str, Any]]:
        """Return further parameter groups to optimise, with settings of their own."""
        return []


def gather_ranks(vae: VAE, output: Output) -> Output:
    """Return the terms of all ranks' examples."""
    if JOINT.alone:
        return output
    x, y, known = (each if each is None else gather(each) for each in output.batch)
    assert x is not None
    draw, batch = output.draw, Batch(x, y, known)
    parameters = gather(draw.parameters)
    p = vae.prior(batch.y) if draw.p.batch_shape else draw.p
    q = vae.latent.q(parameters)
    joined = Draw(gather(draw.z, 1), q, p, gather(draw.kl), draw.layers, parameters, draw.extra)
    return Output(gather(output.log_likelihood, 1), joined, batch)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Give a module's parameters no gradients within the block; gradients still flow through it to its inputs."""
    own = [p for p in module.parameters() if p.requires_grad]
    for p in own:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in own:
            p.requires_grad_(True)
