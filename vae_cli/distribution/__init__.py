"""Distributions that torch.distributions lacks, and the KL divergences between them."""

from vae_cli.distribution.base import Explained, exact, lacking
from vae_cli.distribution.flow import CachedLogProb
from vae_cli.distribution.gaussian import FullGaussian, Gaussian, diagonal, is_diagonal
from vae_cli.distribution.kl import kl_by_dimension
from vae_cli.distribution.mixture import GaussianMixture, mixture
from vae_cli.distribution.one_hot import OneHot
from vae_cli.distribution.rescaled import Rescaled
from vae_cli.distribution.shaped import Shaped

__all__ = [
    "CachedLogProb",
    "Explained",
    "FullGaussian",
    "Gaussian",
    "GaussianMixture",
    "OneHot",
    "Rescaled",
    "Shaped",
    "diagonal",
    "exact",
    "is_diagonal",
    "kl_by_dimension",
    "lacking",
    "mixture",
]
