"""How a step of a reconcile ends when the chain does not simply go on."""

from dataclasses import dataclass

RETRY_SECONDS: float = 300
"""When to try a stage again whose source or store could not be reached."""


@dataclass(frozen=True, slots=True)
class Working:
    """Under way or queued; nobody needs to act."""

    reason: str
    message: str
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Blocked:
    """Waits until somebody acts, and goes on by itself then.

    Nothing has to be looked at meanwhile: what it waits for is an object of ours, a child, or a claim
    (`runtime/lookups.py`), and a change of those brings another look.
    """

    reason: str
    message: str
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """Has ended badly."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Done:
    """Has ended well."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Suspended:
    """Rests because its spec asks for that; nothing runs, and nothing is wrong."""

    reason: str
    message: str


Halt = Working | Blocked | Failed | Done | Suspended
