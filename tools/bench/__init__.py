"""Benchmarks: the operator, the preparation of rows, and training."""
