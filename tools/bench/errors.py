# SPDX-License-Identifier: Apache-2.0
"""Errors of the benchmarks."""


class BenchError(Exception):
    """The measurement failed, or a target was missed; the message gives the reason."""
