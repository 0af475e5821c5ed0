"""The importance-weighted bound."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vae_cli.config.types import Count
from vae_cli.objective.base import Objective, Penalty, frozen
from vae_cli.vae import VAE, Output


class IWAE(Objective):
    """−E log 1/K Σ_k w_k, w = p(x|z) (p(z)/q(z|x))^β (Burda et al. 2016, eq. 8; β = 1 there).

    Args:
        samples: K, draws of z for each example.
        gradient: of the encoder. `standard`: the bound's own. `stl`: without the score of q (Roeder et al. 2017);
            unbiased for K = 1 alone. `dreg`: doubly reparameterised (Tucker et al. 2019, eq. 8): unbiased, and its
            signal-to-noise ratio does not vanish as K grows.

    >>> from vae_cli.batch import Batch
    >>> from vae_cli.config import compose
    >>> from vae_cli.data import Spec
    >>> from vae_cli.parts import build
    >>> vae = build(compose(), Spec((4,), 2, 0.0, 1.0))  # four binary elements
    >>> terms = IWAE(samples=50, gradient="dreg")(vae, Batch(torch.ones(5, 4)), Penalty())
    >>> torch.allclose(terms.loss, -terms.extra["bound"])
    True
    """

    extra = ("bound",)
    selection = "bound"
    ignores = ("kl.free_bits", "target")
    refuses = {
        "discrete": ("its gradient passes through z, and classes have none", {"objective.gradient": ["stl", "dreg"]})
    }
    needs = {"eager": ("its hook is not compiled rightly", {"objective.gradient": ["dreg"]})}

    def __init__(self, *, samples: Count, gradient: Literal["standard", "stl", "dreg"]):
        super().__init__(samples=samples)
        self.gradient = gradient

    def loss(self, vae: VAE, output: Output, penalty: Penalty) -> tuple[Tensor, dict[str, Tensor]]:
        """Return −log 1/K Σ w; its gradient is Σ_k w̃_k ∇log w_k, w̃ the normalised weights, or a variant of it.

        With the parameters of q detached in log q, the gradient lacks q's score. Its expectation is
        −β Σ_k w̃_k (1 − w̃_k) ∂log w_k/∂z, so `dreg` scales the gradient of z_k by 1 − β(1 − w̃_k): w̃_k for β = 1.
        """
        q, z = output.draw.q, output.z
        if self.gradient == "standard":
            log_q = q.log_prob(z)
        else:
            with frozen(vae):  # q may share weights with p (latent=ladder); log q gives none of them a gradient
                log_q = vae.latent.q(output.draw.parameters.detach()).log_prob(z)
        log_ratio = output.draw.p.log_prob(z) - log_q
        log_w = output.log_likelihood + penalty.weight * log_ratio
        share = log_w.detach().softmax(0)
        if self.gradient == "dreg" and z.requires_grad:
            z.register_hook(lambda gradient: (1.0 - penalty.weight * (1.0 - share)).unsqueeze(-1) * gradient)
        surrogate, value = (share * log_w).sum(0).mean(), log_mean(log_w.detach())
        bound = log_mean((output.log_likelihood + log_ratio).detach())
        return -(surrogate + (value - surrogate).detach()), {"bound": bound}


def log_mean(log_w: Tensor) -> Tensor:
    """Return the mean over the batch of log 1/K Σ_k w_k [], for log w [K, B]."""
    return (torch.logsumexp(log_w, 0) - math.log(len(log_w))).mean()
