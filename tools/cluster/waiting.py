"""Wait for a condition with a deadline."""

import time
from collections.abc import Callable
from typing import Final

from tools.cluster.errors import ClusterError

_INTERVAL_SECONDS: Final = 0.05


def until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Return as soon as `condition` is true.

    Raises:
        ClusterError: it was still false after `seconds`.
    """
    if not becomes_true(condition, seconds):
        raise ClusterError(f"gave up after {seconds:.0f} s: {what}")


def becomes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` is true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_INTERVAL_SECONDS)
    return True
