"""Run a short command of the system and turn its failure into a message."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.cluster.errors import ClusterError


def run(
    command: Sequence[str | Path], *, text: str | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """The standard output of `command`, which is given `text` on standard input.

    Raises:
        ClusterError: it exited with another status than 0; the message holds what it wrote to stderr.
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
        raise ClusterError(f"`{line}` failed with status {result.returncode}:\n{result.stderr.strip()}")
    return result.stdout


def succeeds(command: Sequence[str | Path]) -> bool:
    """Whether `command` exits with status 0."""
    return subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode == 0
