"""vae-generate: a finished run in, pictures and arrays out."""
