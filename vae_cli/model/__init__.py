"""Encoders and decoders: shapes in, features out.

A model is one module with two methods. `encode(x, c)` maps x [B, *shape] and a condition c [B, C] (or None) to
features [B, F] with F = `features`; `decode(z, c)` maps z [B, D] to outputs [B, P, *shape], P for each element.
Constructors take `shape`, `latent_dim`, `condition_dim` (0 for none), `outputs` (P) and settings of their own.
"""
