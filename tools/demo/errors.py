# SPDX-License-Identifier: Apache-2.0
"""Errors of the demo."""

from collections.abc import Sequence


class DemoError(Exception):
    """A step failed.

    Attributes:
        commands: commands for details or a remedy.
        details: lines of output, such as the end of a pod's log.
    """

    def __init__(self, message: str, commands: Sequence[str] = (), details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.commands = tuple(commands)
        self.details = tuple(details)
