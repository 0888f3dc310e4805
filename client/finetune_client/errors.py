# SPDX-License-Identifier: Apache-2.0
"""Failures that end the program with a message, a remedy and an exit code."""

from collections.abc import Sequence
from enum import IntEnum


class ProgramExit(IntEnum):
    """Exit codes of `finetune`; a CI job tells the outcomes apart by them."""

    DONE = 0
    WARNINGS = 1
    INVALID = 2
    """Wrong arguments, manifests or rows."""
    EXISTS = 3
    """A file would be overwritten."""
    GATES_FAILED = 4
    """The run ended, and its Checkpoint did not pass the gates."""
    FAILED = 5
    OWNED_BY_GIT = 6
    """The field belongs to a GitOps controller, which would revert the change."""
    TIMED_OUT = 124
    INTERRUPTED = 130


class OperationError(Exception):
    """An operation failed.

    Attributes:
        commands: commands for details or a remedy.
        details: lines of output, such as the end of a pod's log.
        exit_code: exit code of the program.
    """

    def __init__(
        self,
        message: str,
        commands: Sequence[str] = (),
        details: Sequence[str] = (),
        exit_code: ProgramExit = ProgramExit.FAILED,
    ) -> None:
        super().__init__(message)
        self.commands = tuple(commands)
        self.details = tuple(details)
        self.exit_code = exit_code


class UnavailableError(OperationError):
    """The API server does not answer, or not at the moment."""
