# SPDX-License-Identifier: Apache-2.0
"""Share of rows whose answer equals a correct text."""

from collections.abc import Collection


def value(answer: str, accepted: Collection[str]) -> float:
    """Return 1 for a correct answer, otherwise 0. White space around it is removed before."""
    return float(answer in accepted)
