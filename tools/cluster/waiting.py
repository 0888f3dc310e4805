# SPDX-License-Identifier: Apache-2.0
"""Waits for a condition with a deadline."""

import time
from collections.abc import Callable
from typing import Final

from tools.cluster.errors import ClusterError

_INTERVAL_SECONDS: Final = 0.05


def until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Wait until `condition` is true.

    Args:
        what: description for the error message, such as `the API server`.
        condition: called every _INTERVAL_SECONDS.
        seconds: maximum wait.

    Raises:
        ClusterError: the condition was still false after `seconds`.
    """
    if not becomes_true(condition, seconds):
        raise ClusterError(f"the wait for {what} took more than {seconds:.0f} s")


def becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Wait until `condition` is true; returns whether it became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_INTERVAL_SECONDS)
    return True
