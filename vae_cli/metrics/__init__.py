"""Numbers of a model on a set of examples, in nats, and what they can be compared with."""

from vae_cli.metrics.aggregate import aggregate
from vae_cli.metrics.disentanglement import codes, dci, factors, linear_probe, mutual_information_gap
from vae_cli.metrics.elbo import (
    ACTIVE,
    Evaluation,
    bits_per_dim,
    decodes_at_once,
    enough_draws,
    evaluate,
    evaluation_mode,
)
from vae_cli.metrics.gap import amortisation
from vae_cli.metrics.importance import LogLikelihood, log_likelihood, numbers, score
from vae_cli.metrics.meaning import caveats, measure, worse_than_no_model
from vae_cli.metrics.quality import inception_fid, quality
from vae_cli.metrics.split import SplitMetrics

__all__ = [
    "ACTIVE",
    "Evaluation",
    "LogLikelihood",
    "SplitMetrics",
    "aggregate",
    "amortisation",
    "bits_per_dim",
    "caveats",
    "codes",
    "dci",
    "decodes_at_once",
    "enough_draws",
    "evaluate",
    "evaluation_mode",
    "factors",
    "inception_fid",
    "linear_probe",
    "log_likelihood",
    "measure",
    "mutual_information_gap",
    "numbers",
    "quality",
    "score",
    "worse_than_no_model",
]
