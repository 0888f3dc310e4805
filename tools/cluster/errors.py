# SPDX-License-Identifier: Apache-2.0
"""Errors of this package."""


class ClusterError(Exception):
    """An error whose cause is outside the code; the message says what is wrong and what to do next."""
