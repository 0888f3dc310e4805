# SPDX-License-Identifier: Apache-2.0
"""The matrix of disturbances: every write and event in two files, with every fault.

Both files are recorded from an undisturbed chain (`UPDATE_GOLDEN=1 pytest tests/faults -k undisturbed`). So
tests have stable names, and a review shows when a chain writes more or less.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.faults.faults import DisturbedWrite, Fault, LostEvent
from tests.faults.laboratory import Outcome
from tests.faults.requests import CHILDREN
from tests.faults.trials import Trial

WRITES: Final = Path(__file__).with_name("writes.txt")
EVENTS: Final = Path(__file__).with_name("events.txt")

IMPATIENT_SECONDS: Final = 3
"""Interval of the lists that compensate for lost events; the default, ten minutes, is too long for a test."""

SAMPLE: Final = frozenset(
    {
        "POST jobs routing-train killed-before",
        "POST jobs last-month-evaluate killed-before",
        "PATCH evaluations/status last-month Ready=True/Succeeded killed-before",
        "PATCH evaluations/status last-month Ready=True/Succeeded killed-after",
        "POST jobs last-month-cleanup killed-after",
        "POST jobs routing-train killed-stale-children",
        "POST checkpoints routing-40 killed-after",
        "PATCH checkpoints/status routing-40 Promoted=True/Promoted killed-stale-kinds",
        "POST jobs routing-evaluate 409",
        "POST deployments support #2 429",
        "POST datasetversions tickets 500",
        "PATCH finetunejobs/status routing Ready=True/Promoted 504-carried-out",
        "DELETE jobs routing-v2-train reset-carried-out",
        "PATCH services support watches-expire",
        "POST jobs letters-collect killed-stale-children",
        "DELETE checkpoints routing-v2-40 killed-after",
        "jobs routing-v2-train Complete=True/CompletionsReached lost",
        "checkpoints routing-v2-40 to be approved lost",
    }
)
"""The trials of `make test`: one of each kind, at the most important writes."""


def recorded(path: Path) -> list[str]:
    return path.read_text().splitlines()


def record(path: Path, identities: Iterable[str]) -> None:
    path.write_text("".join(f"{each}\n" for each in identities))


def writes_of(outcome: Outcome) -> list[str]:
    """The writes of a chain, without those that depend on timing: repeated writes of an equal status,
    renewals of the Lease, deletes that are refused because the object has changed, and writes of a profile's
    status, which any of the operators may do."""
    return [
        write
        for write in outcome.writes
        if "computeprofiles" not in write
        and not ("#" in write and ("/status" in write or write.startswith(("PUT leases", "DELETE"))))
    ]


def events_of(outcome: Outcome) -> list[str]:
    """The events of a chain, without those of profiles, which all chains share, and without those of the
    operator's own status writes."""
    return [
        event
        for event in outcome.events
        if not event.startswith("computeprofiles") and (event.split()[0] in CHILDREN or "=" not in event)
    ]


def differences(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """Differences between the writes or events of a chain and the recorded ones, except those that depend on
    timing: retries of a refused write, and intermediate states of a pod that ended quickly."""
    actual, recorded_ = set(map(_unnumbered, found)), set(map(_unnumbered, expected))
    return [
        *(f"new: {each}" for each in sorted(actual - recorded_) if not _is_creation(each)),
        *(f"missing: {each}" for each in sorted(recorded_ - actual) if not _is_intermediate(each)),
    ]


def _unnumbered(identity: str) -> str:
    return identity.partition(" #")[0]


def _is_creation(identity: str) -> bool:
    """Whether it is the watch event of a creation, which does not occur if the first list has the object."""
    return len(identity.split()) == 2


def _is_intermediate(identity: str) -> bool:
    """Whether the write or event is about an intermediate state."""
    if identity.startswith("pods "):
        return not identity.endswith(" deleted")
    return "/status " in identity and " Reconciling=True/" in identity


def trials() -> list[Trial]:
    """All trials, write by write."""
    return [
        *(Trial(DisturbedWrite(write, fault)) for write in recorded(WRITES) for fault in Fault),
        *(Trial(LostEvent(event), relist_seconds=IMPATIENT_SECONDS) for event in recorded(EVENTS)),
    ]
