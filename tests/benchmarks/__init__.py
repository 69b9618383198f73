"""Benchmarks: ratios to peers that are measured in the same run. Never part of the ordinary tests."""
