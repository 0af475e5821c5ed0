"""Shards: tar files of samples, read past."""
