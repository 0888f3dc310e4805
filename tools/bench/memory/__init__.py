# SPDX-License-Identifier: Apache-2.0
"""Benchmark: host memory of each process of a sharded run."""
