"""Benchmarks: each prints one line per figure, with median and spread, ours beside a peer or the floor."""
