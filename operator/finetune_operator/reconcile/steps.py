"""How a step of a reconcile ends when the chain does not simply go on."""

from dataclasses import dataclass

REQUEUE_SECONDS: float = 15
"""When to look again at what mends itself without any of our objects changing, such as a missing claim."""

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
    """Waits until somebody acts, and goes on by itself then."""

    reason: str
    message: str
    requeue_after: float | None = REQUEUE_SECONDS


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


Halt = Working | Blocked | Failed | Done
