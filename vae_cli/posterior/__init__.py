"""Posteriors q(z|x,c): parameters, which a head makes of the encoder's features, become a distribution over z."""

from vae_cli.posterior.base import Posterior

__all__ = ["Posterior"]
