"""Benchmark: host memory of each process of a sharded run."""
