# SPDX-License-Identifier: Apache-2.0
"""Run a short system command, and turn its failure into an error with a message."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.cluster.errors import ClusterError


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
