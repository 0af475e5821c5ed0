"""Priors p(z|c): a condition, or nothing, becomes a distribution over z."""
