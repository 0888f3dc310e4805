# SPDX-License-Identifier: Apache-2.0
"""A pass: what it has decided so far, how a step can end it, and the conditions, phase and event of its end.

All kinds write their kstatus state here. An event announces a block only when its reason is new. The
conditions before the pass show what was announced already.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar, cast

from finetune_operator.api.meta import Condition, Model, Resource, Status
from finetune_operator.manifests.pod_security import build_service_account
from finetune_operator.plan import Create, Delete, Event, Manifest, Plan
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.status import conditions
from finetune_operator.status.conditions import (
    Conditioned,
    ConditionedStatus,
    is_finished,
    is_prepared,
    shorten,
)
from finetune_operator.status.reasons import ConditionType, EventReason, Reason


@dataclass(slots=True)
class PlanBuilder:
    """Creates, deletes and events of one pass; `plan` adds the status."""

    snapshot: Snapshot
    create: list[Create] = field(default_factory=list)
    delete: list[Delete] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def start_job(self, job: Manifest) -> None:
        """Create a stage's Job, and before it the service account of its pods."""
        account = job["spec"]["template"]["spec"]["serviceAccountName"]
        if account not in self.snapshot.service_accounts:
            manifest = build_service_account(
                job["metadata"]["namespace"], account, self.snapshot.facts.accounts
            )
            self.create.append(Create(manifest, same="Any"))
        self.create.append(Create(job))

    def remove(
        self, manifest: Manifest, propagation: Literal["Foreground", "Background"] = "Foreground"
    ) -> None:
        """Delete an object unless it is already being deleted."""
        if "deletionTimestamp" not in manifest["metadata"]:
            self.delete.append(Delete(manifest, propagation))

    def event(
        self, reason: EventReason, message: str, type_: Literal["Normal", "Warning"] = "Normal"
    ) -> None:
        """Add an event about the reconciled object. Events take as much text as conditions."""
        self.events.append(Event(type_, reason, shorten(message)))

    def plan(
        self,
        status: Manifest | None,
        requeue_after: float | None = None,
        metadata: Manifest | None = None,
    ) -> Plan:
        return Plan(
            create=tuple(self.create),
            delete=tuple(self.delete),
            status=status,
            events=tuple(self.events),
            metadata=metadata,
            requeue_after=requeue_after,
        )


RETRY_SECONDS: float = 300
"""Seconds until the operator retries the removal of a folder."""


def earliest(*seconds: float | None) -> float | None:
    """The shortest of several waits for the next pass; None is a wait without end."""
    return min((each for each in seconds if each is not None), default=None)


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a step ended the pass, and the seconds until the next one if nothing changes before."""

    reason: str
    message: str
    requeue_after: float | None = None


@dataclass(frozen=True, slots=True)
class Working(_Outcome):
    """In progress or queued; no one needs to act."""


@dataclass(frozen=True, slots=True)
class Blocked(_Outcome):
    """Waits until a user or an administrator acts, and continues then.

    It needs no timer: it waits for an object of one of our kinds, a child, or a claim (`runtime/lookups.py`),
    and a change of any of them starts a pass.
    """


@dataclass(frozen=True, slots=True)
class Failed(_Outcome):
    """Ended with a failure."""


@dataclass(frozen=True, slots=True)
class Done(_Outcome):
    """Ended with success."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """Suspended by its spec: nothing runs, and nothing is wrong."""

    reason: str
    message: str


PassOutcome = Working | Blocked | Failed | Done | Suspended


class Reconciled(Conditioned, Protocol):
    """An object of one of the operator's kinds."""

    done_phase: ClassVar[str | None]
    keeps_verdict: ClassVar[bool]
    stays_ready: ClassVar[bool]


S = TypeVar("S", bound=ConditionedStatus)

STATES: Final[Mapping[type, ConditionType]] = {
    Working: ConditionType.RECONCILING,
    Blocked: ConditionType.RECONCILING,
    Failed: ConditionType.STALLED,
    Done: ConditionType.READY,
    Suspended: ConditionType.SUSPENDED,
}
PHASES: Final[Mapping[type, str]] = {Blocked: "Blocked", Failed: "Failed", Suspended: "Suspended"}
"""Phases by the end of a pass; while an object works, and if it was cancelled, the phase is the reason."""


@dataclass(frozen=True, slots=True)
class PassResult(Generic[S]):
    """Status, events and re-check that follow from the end of a pass."""

    status: S
    events: tuple[Event, ...]
    requeue_after: float | None

    @property
    def manifest(self) -> Manifest:
        """The whole status as the operator writes it."""
        return conditions.status_manifest(cast("Model", self.status))


def finish_pass(
    resource: Reconciled,
    status: S,
    halt: PassOutcome,
    now: datetime,
    *,
    announce_failure: EventReason | None = None,
) -> PassResult[S]:
    """Set the state that `halt` means, and announce it with an event if it is new.

    Args:
        resource: the object as the pass read it.
        status: the status after the pass, without its state.
        halt: how the pass ended.
        now: the time of the pass.
        announce_failure: reason of the event about a failure; None if a step of the pass has sent one.
    """
    update: dict[str, Any] = {"observed_generation": resource.metadata.generation}
    type_ = _condition_of(resource, halt)
    if type_ is not None:
        update["conditions"] = _set(status.conditions, type_, halt, resource.metadata.generation, now)
    if type_ in conditions.STATES and resource.done_phase is not None:
        update["phase"] = _phase(resource.done_phase, halt)
    before = None if type_ is None else conditions.find_condition(resource.status.conditions, type_)
    is_new = before is None or before.reason != halt.reason
    event = _event(halt, announce_failure) if is_new else None
    return PassResult(
        status.model_copy(update=update),
        () if event is None else (event,),
        halt.requeue_after if isinstance(halt, _Outcome) else None,
    )


def block(resource: Resource, reason: str, message: str, now: datetime) -> PassResult[Any]:
    """Block an object of any kind until a user acts; nothing else of its status changes."""
    status = getattr(resource, "status", None)
    if not isinstance(status, Status):
        raise TypeError(f"{type(resource).__name__} has no status")
    return finish_pass(
        cast("Reconciled", resource), cast("ConditionedStatus", status), Blocked(reason, message), now
    )


def _condition_of(resource: Reconciled, halt: PassOutcome) -> ConditionType | None:
    """The condition that shows the end of the pass; None if there is none.

    An object that keeps its verdict gets no condition of later passes.
    """
    if resource.keeps_verdict and is_finished(resource) and not isinstance(halt, Done):
        return None
    if resource.stays_ready and is_prepared(resource) and isinstance(halt, Blocked | Failed):
        return ConditionType.REFRESHED
    return STATES[type(halt)]


def _set(
    known: tuple[Condition, ...], type_: ConditionType, halt: PassOutcome, generation: int, now: datetime
) -> tuple[Condition, ...]:
    if type_ in conditions.STATES:
        return conditions.enter_state(known, type_, halt.reason, halt.message, generation=generation, now=now)
    return conditions.set_condition(
        known, type_, "False", halt.reason, halt.message, generation=generation, now=now
    )


def _phase(done: str, halt: PassOutcome) -> str:
    if halt.reason == Reason.CANCELLED:
        return halt.reason
    return done if isinstance(halt, Done) else PHASES.get(type(halt), halt.reason)


def _event(halt: PassOutcome, announce_failure: EventReason | None) -> Event | None:
    message = conditions.shorten(halt.message)
    match halt:
        case Blocked():
            return Event("Warning", EventReason.BLOCKED, message)
        case Failed(reason=Reason.NOT_IMPLEMENTED):
            return Event("Warning", EventReason.NOT_IMPLEMENTED, message)
        case Failed() if announce_failure is not None:
            return Event("Warning", announce_failure, message)
        case Working(reason=Reason.BUDGET_EXHAUSTED):
            return Event("Normal", EventReason.BUDGET_EXHAUSTED, message)
        case Suspended():
            return Event("Normal", EventReason.SUSPENDED, message)
    return None
