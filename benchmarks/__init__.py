"""Benchmarks: side by side in one run, with the table that came out."""
