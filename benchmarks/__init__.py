"""Ratios of the usual recipe to ours: `python -m benchmarks`, or `make bench`."""
