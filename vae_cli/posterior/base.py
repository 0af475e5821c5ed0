"""The contract of a posterior."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.distributions import Distribution

Head = Callable[..., nn.Module]  # (outputs for each element of z, further ones of the whole) → features to parameters


class Posterior(nn.Module):
    """Base of the posteriors.

    A posterior says how many outputs of the encoder an element of z needs; the model builds the head that gives them.

    Args:
        head: (outputs, extra) → the module that maps features to parameters [B, outputs · D + extra].
        outputs: parameters for each element of z.
        extra: further parameters of the whole; a latent on a grid has none to give.

    >>> import torch
    >>> from vae_cli.distribution import diagonal
    >>> class Narrow(Posterior):
    ...     def __init__(self, *, head):
    ...         super().__init__(head, outputs=1)
    ...
    ...     def distribution(self, parameters):
    ...         return diagonal(parameters, torch.full_like(parameters, 0.1))
    >>> Narrow(head=lambda outputs, extra: torch.nn.Linear(8, outputs * 3 + extra))(torch.zeros(5, 8)).stddev.shape
    torch.Size([5, 3])
    """

    gives: tuple[str, ...] = ()

    def __init__(self, head: Head, outputs: int, extra: int = 0):
        super().__init__()
        self.head = head(outputs, extra)

    def distribution(self, parameters: Tensor) -> Distribution:
        """Return q(z|x,c), batch shape [B] and event shape [D], from its parameters [B, P]."""
        raise NotImplementedError("a posterior turns parameters into a distribution in `distribution`")

    def forward(self, features: Tensor) -> Distribution:
        """Map features to q(z|x,c), batch shape [B] and event shape [D]."""
        return self.distribution(self.head(features))
