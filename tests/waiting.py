# SPDX-License-Identifier: Apache-2.0
"""Wait for a condition with a deadline instead of a fixed time."""

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
    """Call `condition` every `pause` seconds, and return its first true value.

    Args:
        what: description of the condition for the error message.
        condition: the condition.
        seconds: maximum wait.
        describe: called on failure; its result ends the error message.
        pause: seconds between two calls.

    Raises:
        AssertionError: there was no true value within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}\n{describe()}")
        time.sleep(pause)
