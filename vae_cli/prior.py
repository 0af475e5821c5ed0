"""Priors p(z|c)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_cli.distribution import GaussianMixture, Remembering, diagonal, mixture
from vae_cli.errors import UserError
from vae_cli.model.layers import dense
from vae_cli.posterior import start_as_identity

MEAN_DRAWS = 1000  # that the mean of a flow is estimated from
MARGIN = 0.02  # how far within the data's range pseudo-inputs start, as a fraction of it


class Standard(nn.Module):
    """p(z) = N(0, I).

    Args:
        latent_dim: D, dimensions of z.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, *, latent_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c plays no part."""
        return diagonal(self.loc, self.scale)


class Mixture(nn.Module):
    """p(z) = Σ_c π_c N(μ_c, diag σ_c²), all learned; the means start as draws of N(0, I).

    Args:
        latent_dim: D, dimensions of z.
        components: of the mixture.
    """

    def __init__(self, *, latent_dim: int, components: int = 10):
        super().__init__()
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(components, latent_dim))
        self.logits = nn.Parameter(torch.zeros(components))

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c plays no part."""
        return GaussianMixture(self.loc, self.log_scale.exp(), self.logits)


class Vamp(nn.Module):
    """p(z) = 1/K Σ_k q(z|u_k) with learned pseudo-inputs u_k (VampPrior, Tomczak & Welling 2018, eq. 9).

    Pseudo-inputs are low + (high − low)·σ(v): always within the data's range. With a conditional model each has a
    learned condition beside it.

    Args:
        encoder: (x, c) → q(z|x,c).
        shape: of one example.
        condition_dim: C, dimensions of the condition; 0 for none.
        low: the lowest value of the data.
        high: the highest.
        components: K.
        start: `data`: pseudo-inputs start as training examples; `noise`: as noise around the training mean.
    """

    def __init__(
        self,
        *,
        encoder: Callable[[Tensor, Tensor | None], Distribution],
        shape: Sequence[int],
        condition_dim: int,
        low: float,
        high: float,
        components: int = 500,
        start: str = "data",
    ):
        super().__init__()
        self.encoder, self.start, self.low, self.high = encoder, start, low, max(high, low + 1e-6)
        self.raw = nn.Parameter(torch.zeros(components, *shape))
        self.conditions = nn.Parameter(torch.zeros(components, condition_dim)) if condition_dim else None

    @property
    def inputs(self) -> Tensor:
        """The pseudo-inputs u [K, *shape]."""
        return self.low + (self.high - self.low) * self.raw.sigmoid()

    @torch.no_grad()
    def initialize(self, x: Tensor, c: Tensor | None) -> None:
        """Set the start from training examples x [N, *shape] and their conditions c [N, C]."""
        index = torch.randint(len(x), (len(self.raw),), device=x.device)
        if len(x) >= len(self.raw):
            index = torch.randperm(len(x), device=x.device)[: len(self.raw)]
        if self.start == "noise":
            self.raw.copy_(self._logit(x.mean(0)) + torch.randn_like(self.raw))
        else:
            self.raw.copy_(self._logit(x[index]))
            if len(x) < len(self.raw):  # repeats part ways
                self.raw.add_(0.1 * torch.randn_like(self.raw))
        if self.conditions is not None and c is not None:
            self.conditions.copy_(c[index])

    def _logit(self, x: Tensor) -> Tensor:
        return torch.logit(((x - self.low) / (self.high - self.low)).clamp(MARGIN, 1.0 - MARGIN))

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c plays no part."""
        return mixture(self.encoder(self.inputs, self.conditions))


class Flow(nn.Module):
    """p(z): a masked autoregressive flow (Papamakarios et al. 2017) by zuko; it starts as N(0, I).

    Densities take one pass, draws take D.

    Args:
        latent_dim: D, dimensions of z.
        transforms: autoregressive transforms; the order of the dimensions turns around from one to the next.
        hidden: widths of the hidden layers of each transform's network.
    """

    def __init__(self, *, latent_dim: int, transforms: int = 3, hidden: Sequence[int] = (128, 128)):
        super().__init__()
        from zuko.flows import MAF

        self.flow = MAF(latent_dim, transforms=transforms, hidden_features=list(hidden))
        start_as_identity(self.flow.transform)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Return p(z) with batch shape [] and event shape [D]; the condition c plays no part."""
        return Remembering(self.flow(), draws=MEAN_DRAWS)


class Conditional(nn.Module):
    """p(z|c) = N(μ(c), diag σ(c)²), learned for each condition; it starts as N(0, I).

    Args:
        latent_dim: D, dimensions of z.
        condition_dim: C, dimensions of the condition.
        hidden: widths of the hidden layers between c and (μ, log σ); none gives each class a Gaussian of its own.

    Raises:
        UserError: there is no condition.
    """

    def __init__(self, *, latent_dim: int, condition_dim: int, hidden: Sequence[int] = ()):
        super().__init__()
        if condition_dim == 0:
            raise UserError("prior=conditional: needs labels; with it conditional=label is allowed")
        self.body = dense([condition_dim, *hidden], "relu")
        self.head = nn.Linear([condition_dim, *hidden][-1], 2 * latent_dim)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, c: Tensor | None = None) -> Distribution:
        """Map conditions c [B, C] to p(z|c) with batch shape [B] and event shape [D]."""
        assert c is not None
        loc, log_scale = self.head(self.body(c)).chunk(2, dim=-1)
        return diagonal(loc, log_scale.exp())
