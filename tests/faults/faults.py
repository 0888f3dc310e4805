"""What can happen between the operator and the API server, once in a chain."""

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What happens to one write; where it is carried out, the operator is not told."""

    KILLED_BEFORE = "killed-before"
    KILLED_AFTER = "killed-after"
    CONFLICT = "409"
    TOO_MANY = "429"
    INTERNAL = "500"
    TIMEOUT = "504-carried-out"
    RESET = "reset-carried-out"
    EXPIRED = "watches-expire"
    """All open watches end with 410 before it."""
    STALE_CHILDREN = "killed-stale-children"
    """The operator is killed after it, and its first lists of children are from the beginning of time."""
    STALE_KINDS = "killed-stale-kinds"
    """The same with the lists of everything else."""


@dataclass(frozen=True, slots=True)
class DisturbedWrite:
    """A fault happens to the write of this identity."""

    request: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.request} {self.fault}"


@dataclass(frozen=True, slots=True)
class LostEvent:
    """No watch ever tells what these events tell."""

    event: str

    def __str__(self) -> str:
        return f"{self.event} lost"


Disturbance = DisturbedWrite | LostEvent


def is_stale(fault: Fault) -> bool:
    """Whether it has taken place only when an old list was handed out."""
    return fault in {Fault.STALE_CHILDREN, Fault.STALE_KINDS}


def kills(disturbance: Disturbance | None) -> bool:
    """Whether the operator is killed, once."""
    if not isinstance(disturbance, DisturbedWrite):
        return False
    return is_stale(disturbance.fault) or disturbance.fault in {Fault.KILLED_BEFORE, Fault.KILLED_AFTER}
