"""Benchmark: time from the start of a train pod to its first step."""
