"""Waiting for a condition with a deadline, instead of for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def eventually(
    what: str,
    condition: Callable[[], T | None],
    seconds: float = 30,
    describe: Callable[[], object] = str,
    pause: float = 0.05,
) -> T:
    """The first true value of `condition`, which is asked every `pause` seconds.

    Raises:
        AssertionError: there was none in time; ends with what `describe` says then.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{describe()}")
        time.sleep(pause)
