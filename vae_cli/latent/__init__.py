"""Latents: what z is, how it is inferred from features and generated from the prior.

A latent owns posterior and prior. To everyone but the model z is flat, [..., D]; `layout` knows its shape.
"""

from vae_cli.latent.base import Draw, Encoder, Latent, Layout

__all__ = ["Draw", "Encoder", "Latent", "Layout"]
