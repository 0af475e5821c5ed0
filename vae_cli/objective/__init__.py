"""Objectives: Output → the scalar to minimise and the named terms to report.

The one place that averages over the batch. Every term is in nats. Whatever is minimised, `elbo`, `reconstruction`, `kl`
and `bound` mean the same: KL weight 1, no free bits; all but the bound are means over the draws of z.
"""

from vae_cli.objective.base import Objective, Penalty, Terms

__all__ = ["Objective", "Penalty", "Terms"]
