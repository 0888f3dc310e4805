# SPDX-License-Identifier: Apache-2.0
"""Run short system commands and wait for conditions; a failure is an error with a message."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final


class ClusterError(Exception):
    """An error whose cause is outside the code; the message says what is wrong and what to do next."""


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


def run(
    command: Sequence[str | Path], *, text: str | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """Run `command` with `text` as its input, and return its output.

    Raises:
        ClusterError: its exit status is not 0; the message contains its error output.
    """
    result = subprocess.run(
        command,
        input=text or "",
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | dict(environment or {}),
    )
    if result.returncode:
        line = " ".join(str(part) for part in command)
        raise ClusterError(f"`{line}` failed with exit status {result.returncode}:\n{result.stderr.strip()}")
    return result.stdout


def succeeds(command: Sequence[str | Path]) -> bool:
    """Run `command`; returns whether its exit status is 0."""
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
