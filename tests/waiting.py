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
    *,
    progress: Callable[[], object] = lambda: None,
) -> T:
    """Call `condition` every `pause` seconds, and return its first true value.

    Args:
        what: description of the condition for the error message.
        condition: the condition.
        seconds: maximum wait without progress.
        describe: called on failure; its result ends the error message.
        pause: seconds between two calls.
        progress: state that changes while a slow machine works towards the condition. It is read every
            `seconds`.

    Raises:
        AssertionError: there was no true value within `seconds`, and the state did not change meanwhile.
    """
    reached = progress()
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            before, reached = reached, progress()
            if reached == before:
                raise AssertionError(f"not within {seconds:.0f} s: {what}\n{describe()}")
            deadline = time.monotonic() + seconds
        time.sleep(pause)
