"""Benchmarks of the operator, of data preparation and of training."""
