"""Shards: tar files of samples, read as a stream."""
