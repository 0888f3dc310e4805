# SPDX-License-Identifier: Apache-2.0
"""Disturbances between the operator and the API server; a chain has at most one."""

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """A fault of one write. `carried-out`: the API server executes it, but the operator gets no success."""

    KILLED_BEFORE = "killed-before"
    KILLED_AFTER = "killed-after"
    CONFLICT = "409"
    TOO_MANY = "429"
    INTERNAL = "500"
    TIMEOUT = "504-carried-out"
    RESET = "reset-carried-out"
    EXPIRED = "watches-expire"
    """All open watches end with 410 before the write."""
    STALE_CHILDREN = "killed-stale-children"
    """The operator is killed after the write, and its next lists of children are those of its first start."""
    STALE_KINDS = "killed-stale-kinds"
    """The same with the lists of all other types."""


@dataclass(frozen=True, slots=True)
class DisturbedWrite:
    """A fault of the write with this identity."""

    request: str
    fault: Fault

    def __str__(self) -> str:
        return f"{self.request} {self.fault}"


@dataclass(frozen=True, slots=True)
class LostEvent:
    """No watch delivers the events with this identity."""

    event: str

    def __str__(self) -> str:
        return f"{self.event} lost"


Disturbance = DisturbedWrite | LostEvent


def is_stale(fault: Fault) -> bool:
    """Whether the fault is complete only when the operator has received an old list."""
    return fault in {Fault.STALE_CHILDREN, Fault.STALE_KINDS}


def kills(disturbance: Disturbance | None) -> bool:
    """Whether the disturbance kills the operator."""
    if not isinstance(disturbance, DisturbedWrite):
        return False
    return is_stale(disturbance.fault) or disturbance.fault in {Fault.KILLED_BEFORE, Fault.KILLED_AFTER}
