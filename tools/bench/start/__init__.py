# SPDX-License-Identifier: Apache-2.0
"""Benchmark: time from the start of a train pod to its first step."""
