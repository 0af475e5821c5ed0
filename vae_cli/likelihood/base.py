"""The contract of a likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent

from vae_cli.distribution import Explained
from vae_cli.likelihood.support import Real, Support
from vae_cli.system.errors import UserError


class Elements(Explained):
    """A distribution over x that is independent from element to element given z.

    Subclasses give `element_log_prob`, `mean` and `sample`, and `mode`, `variance` and `element_entropy` where there
    is a closed form; the sum over elements is taken here alone.
    """

    def __init__(self, like: Tensor, event_dims: int):
        """Take the batch and event shape from a tensor [*batch, *event]."""
        split = like.ndim - event_dims
        super().__init__(like.shape[:split], like.shape[split:], validate_args=False)

    def element_log_prob(self, x: Tensor) -> Tensor:
        """Return log p of each element [*batch, *event], nats."""
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) [*batch], nats: the sum over elements."""
        return self._summed(self.element_log_prob(x))

    def log_prob_of_known(self, x: Tensor, known: Tensor) -> Tensor:
        """Return log p of the known elements of x [*batch], nats."""
        return self._summed(torch.where(known, self.element_log_prob(x), 0.0))

    def element_entropy(self) -> Tensor:
        """Return the entropy of each element [*batch, *event], nats."""
        return super().entropy()

    def entropy(self) -> Tensor:
        """Return the entropy [*batch], nats: the sum over elements."""
        return self._summed(self.element_entropy())

    def _summed(self, terms: Tensor) -> Tensor:
        return terms.flatten(terms.ndim - len(self.event_shape)).sum(-1)


class Likelihood(nn.Module):
    """Base of the likelihoods.

    Attributes:
        support: what x may be.
        outputs: P, decoder outputs for each element.
        display: what a person is shown of p(x|z): its `mean`, or a `draw` where that has no closed form.

    >>> from torch.distributions import Normal
    >>> class UnitNormal(Likelihood):
    ...     def forward(self, outputs, event_dims, c=None):
    ...         return Independent(Normal(split(outputs, event_dims)[0], 1.0), event_dims)
    >>> UnitNormal()(torch.zeros(5, 1, 4, 4), 2).log_prob(torch.zeros(4, 4)).shape
    torch.Size([5])
    """

    support: Support = Real()
    outputs = 1
    display = "mean"
    gives: tuple[str, ...] = ()
    joins = False  # whether log p(x|z) of an example depends on the others of its batch

    def forward(self, outputs: Tensor, event_dims: int, c: Tensor | None = None) -> Distribution:
        """Return p(x|z,c) with event shape `shape` of `event_dims` dimensions.

        Args:
            outputs: of the decoder [*batch, P, *shape].
            event_dims: the number of dimensions of x.
            c: conditions [B, C], or None.
        """
        raise NotImplementedError("a likelihood turns decoder outputs into p(x|z) in `forward`")

    def shown(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """Return what the encoder is shown of x [B, *shape]: x itself, and beside it which elements are known."""
        return x if known is None else beside(x, known)

    def shown_shape(self, shape: Sequence[int], *, missing: bool) -> tuple[int, ...]:
        """Return the shape of what the encoder is shown of one example, whose elements may be missing or never are."""
        if not missing:
            return tuple(shape)
        return (2, *shape) if len(shape) in (1, 2) else (2 * shape[0], *shape[1:])

    def picture(self, p: Distribution) -> Tensor:
        """Return what a person is shown of p(x|z), its means or draws: [*batch, *shape]."""
        return p.mean if self.display == "mean" else p.sample()


def beside(x: Tensor, known: Tensor) -> Tensor:
    """Return x [B, D] or [B, *C, H, W] with the mask of what is known as further channels: zeros where it is not."""
    one = x.ndim in (2, 3)  # a table, or pictures without channels
    parts = [each.unsqueeze(1) if one else each for each in (torch.where(known, x, 0.0), known.to(x.dtype))]
    return torch.cat(parts, 1)


def log_prob(p: Distribution, x: Tensor, known: Tensor | None) -> Tensor:
    """Return log p(x|z) [*batch] of the elements that are known (all where `known` is None), nats.

    Raises:
        UserError: elements are missing, and p is not independent from element to element.
    """
    if known is None:
        return p.log_prob(x)
    if hasattr(p, "log_prob_of_known"):
        return p.log_prob_of_known(x, known)
    if not isinstance(p, Independent):
        raise UserError("data.missing=observed: needs a likelihood that is independent from element to element")
    terms = torch.where(known, p.base_dist.log_prob(x), 0.0)
    return terms.flatten(terms.ndim - len(p.event_shape)).sum(-1)


def split(outputs: Tensor, event_dims: int) -> tuple[Tensor, ...]:
    """Return the P outputs of each element, each [*batch, *shape]."""
    axis = -event_dims - 1
    if outputs.shape[axis] == 1:  # a view whose gradient is one too
        return (outputs.squeeze(axis),)
    return outputs.unbind(axis)
