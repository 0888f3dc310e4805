"""The disturbances that are tried: all that is recorded in two files, times all that can happen to it.

Both are written from an undisturbed chain (`UPDATE_GOLDEN=1 pytest tests/faults -k undisturbed`, which runs
that one chain): tests have stable names, and a review shows when a chain writes more, or less.
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
"""The lists that make up for lost events come every ten minutes, for which no test waits."""

SAMPLE: Final = frozenset(
    {
        "POST jobs routing-train killed-before",
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
"""Those of `make test`: one of each kind, at the writes that matter most."""


def recorded(path: Path) -> list[str]:
    return path.read_text().splitlines()


def record(path: Path, identities: Iterable[str]) -> None:
    path.write_text("".join(f"{each}\n" for each in identities))


def writes_of(outcome: Outcome) -> list[str]:
    """The writes of a chain, without those that hang on chance: how often a status is written while it says
    the same, how often the Lease is renewed, how often a delete is refused because the object has changed,
    and which of several operators writes a profile's status."""
    return [
        write
        for write in outcome.writes
        if "computeprofiles" not in write
        and not ("#" in write and ("/status" in write or write.startswith(("PUT leases", "DELETE"))))
    ]


def events_of(outcome: Outcome) -> list[str]:
    """What a chain is told of what others do, but for the profiles, which are those of all chains. Of its own
    status writes the operator knows by the answers."""
    return [
        event
        for event in outcome.events
        if not event.startswith("computeprofiles") and (event.split()[0] in CHILDREN or "=" not in event)
    ]


def differences(found: Iterable[str], expected: Iterable[str]) -> list[str]:
    """In what the writes or events of a chain differ from the recorded ones, but for what hangs on chance:
    how often a refused write is tried, and whether a pod ended before it was seen on its way."""
    there, recorded_ = set(map(_unnumbered, found)), set(map(_unnumbered, expected))
    return [
        *(f"new: {each}" for each in sorted(there - recorded_)),
        *(f"missing: {each}" for each in sorted(recorded_ - there) if not _is_passing(each)),
    ]


def _unnumbered(identity: str) -> str:
    return identity.partition(" #")[0]


def _is_passing(identity: str) -> bool:
    """Whether it says how far something is on its way."""
    if identity.startswith("pods "):
        return not identity.endswith(" deleted")
    return "/status " in identity and " Reconciling=True/" in identity


def trials() -> list[Trial]:
    """All of them, write by write."""
    return [
        *(Trial(DisturbedWrite(write, fault)) for write in recorded(WRITES) for fault in Fault),
        *(Trial(LostEvent(event), relist_seconds=IMPATIENT_SECONDS) for event in recorded(EVENTS)),
    ]
