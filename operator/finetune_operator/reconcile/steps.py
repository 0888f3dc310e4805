# SPDX-License-Identifier: Apache-2.0
"""How a step of a reconcile ends if the chain does not continue."""

from dataclasses import dataclass

RETRY_SECONDS: float = 300
"""Seconds until the operator retries the removal of a folder."""


@dataclass(frozen=True, slots=True)
class Working:
    """In progress or queued; no one needs to act."""

    reason: str
    message: str
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """Waits until a user or an administrator acts, and continues then.

    It needs no timer: it waits for an object of one of our kinds, a child, or a claim (`runtime/lookups.py`),
    and a change of any of them starts a pass.
    """

    reason: str
    message: str
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Ended with a failure."""

    reason: str
    message: str
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """Ended with success."""

    reason: str
    message: str
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Suspended:
    """Suspended by its spec: nothing runs, and nothing is wrong."""

    reason: str
    message: str


Halt = Working | Blocked | Failed | Done | Suspended
