"""The commands: vae-train, vae-eval, vae-generate, vae-export, vae-compare, vae-data."""
