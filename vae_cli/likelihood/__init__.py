"""Likelihoods p(x|z,c): decoder outputs become a distribution over x.

A likelihood owns its activation and the support of x. `outputs` is the number P of decoder outputs for each element of
x; calling it maps outputs [*batch, P, *shape] to a `torch.distributions.Distribution` with event shape `shape`, whose
log-probabilities are sums over the elements, in nats.
"""

from vae_cli.likelihood.base import Elements, Likelihood, log_prob

__all__ = ["Elements", "Likelihood", "log_prob"]
