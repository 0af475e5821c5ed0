"""Honest numbers: what a model is worth on a set of examples, in nats, with what they can be compared with."""

from vae_cli.metrics.aggregate import aggregate
from vae_cli.metrics.elbo import ACTIVE, Evaluation, bits_per_dim, decodes_at_once, evaluate, undisturbed
from vae_cli.metrics.gap import amortisation
from vae_cli.metrics.importance import LogLikelihood, log_likelihood, numbers

__all__ = [
    "ACTIVE",
    "Evaluation",
    "LogLikelihood",
    "aggregate",
    "amortisation",
    "bits_per_dim",
    "decodes_at_once",
    "evaluate",
    "log_likelihood",
    "numbers",
    "undisturbed",
]
