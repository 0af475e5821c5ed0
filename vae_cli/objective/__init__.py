"""Objectives: Output → the scalar to minimise and the named terms to report.

The only place that averages over the batch. Every term is in nats. Whatever is minimised, the reported `elbo`,
`reconstruction`, `kl` and `bound` mean the same: KL weight 1, no free bits. All but the bound are means over the draws.
"""

from vae_cli.objective.base import Objective, Penalty, Terms

__all__ = ["Objective", "Penalty", "Terms"]
