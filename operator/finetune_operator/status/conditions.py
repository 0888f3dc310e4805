# SPDX-License-Identifier: Apache-2.0
"""Conditions, as kstatus reads them, and the end of a run or a preparation, read from conditions.

An object is in exactly one state: working (`Reconciling`), done (`Ready`), failed (`Stalled`) or suspended
(`Suspended`). Entering a state removes the other three, because kstatus reads `Ready=False` as in progress
and a remaining `Stalled` as failed. Domain conditions (`Trained`, `Evaluated`, …) are independent of it.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, Literal, Protocol, Self

from finetune_operator.api.meta import Condition, Model, ObjectMeta
from finetune_operator.plan import Manifest, drop_empty
from finetune_operator.status.reasons import ConditionType, Reason

MESSAGE_LIMIT: Final = 1024
"""Limit of a message in characters; longer ones end in an ellipsis."""

CONTROLS: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tabs and line breaks, and those that change the direction of the text."""

STATES: Final = (
    ConditionType.STALLED,
    ConditionType.SUSPENDED,
    ConditionType.RECONCILING,
    ConditionType.READY,
)
"""States of an object; the first one that is True is its present one."""


class ConditionedStatus(Protocol):
    """The status of an object of any of the operator's kinds."""

    @property
    def observed_generation(self) -> int: ...

    @property
    def conditions(self) -> tuple[Condition, ...]: ...

    def model_copy(self, *, update: Mapping[str, Any] | None = None) -> Self: ...


class Conditioned(Protocol):
    """An object of any of the operator's kinds."""

    @property
    def metadata(self) -> ObjectMeta: ...

    @property
    def status(self) -> ConditionedStatus: ...


def shorten(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Shorten the text to `limit` characters, and replace characters that control a terminal.

    Texts of pods and events are quoted, and whoever may create these decides what they say.
    """
    cut = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return CONTROLS.sub("\N{REPLACEMENT CHARACTER}", cut)


def find_condition(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of this type, or None."""
    return next((condition for condition in conditions if condition.type == type_), None)


def present_state(conditions: Iterable[Condition]) -> Condition | None:
    """The condition of the present state, or None before the first pass."""
    true = {condition.type: condition for condition in conditions if condition.status == "True"}
    return next((true[state] for state in STATES if state in true), None)


def is_true(conditions: Iterable[Condition], type_: ConditionType) -> bool:
    """Whether the condition exists and is True."""
    condition = find_condition(conditions, type_)
    return condition is not None and condition.status == "True"


def set_condition(
    conditions: tuple[Condition, ...],
    type_: ConditionType,
    status: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with this one set; its transition time changes only with its status."""
    old = find_condition(conditions, type_)
    changed = old is None or old.status != status
    new = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=shorten(message),
        last_transition_time=now.replace(microsecond=0)
        if old is None or changed
        else old.last_transition_time,
        observed_generation=generation,
    )
    if old is None:
        return (*conditions, new)
    return tuple(new if condition is old else condition for condition in conditions)


def drop_conditions(conditions: tuple[Condition, ...], *types: ConditionType) -> tuple[Condition, ...]:
    """The conditions without those of the given types."""
    return tuple(condition for condition in conditions if condition.type not in types)


def enter_state(
    conditions: tuple[Condition, ...],
    state: ConditionType,
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions of an object in this state of `STATES`, and in no other one."""
    others = drop_conditions(conditions, *(other for other in STATES if other != state))
    return set_condition(others, state, "True", reason, message, generation=generation, now=now)


def status_manifest(status: Model) -> Manifest:
    """A status as the operator writes it: in camelCase, without empty fields."""
    return drop_empty(status.to_dict())


RESUMABLE_REASONS: Final = frozenset({Reason.NOT_IMPLEMENTED, Reason.MAX_RUN_SECONDS_EXCEEDED})
"""Reasons of Stalled runs that can continue: with a release that implements the field, and after the limit is
raised."""

NOT_PASSED_REASONS: Final = frozenset({Reason.GATE_FAILED, Reason.VETOED, Reason.EVALUATION_UNDECIDED})
"""Reasons of Stalled runs that have weights, and may not promote them."""


def is_finished(job: Conditioned) -> bool:
    """Whether a run or an Evaluation has succeeded or failed; a finished one never starts again."""
    return any(ends_run(each.type, each.status, each.reason) for each in job.status.conditions)


def ends_run(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a FineTuneJob or an Evaluation means that it has finished."""
    failed = type_ == ConditionType.STALLED and reason not in RESUMABLE_REASONS
    return status == "True" and (failed or type_ == ConditionType.READY)


def is_cancelled(job: Conditioned) -> bool:
    """Whether a run was cancelled, or its pods are ending because of that."""
    return any(each.reason in {Reason.CANCELLING, Reason.CANCELLED} for each in job.status.conditions)


def is_prepared(dataset: Conditioned) -> bool:
    """Whether a Dataset is Ready with its current spec."""
    current = dataset.status.observed_generation == dataset.metadata.generation
    return current and is_true(dataset.status.conditions, ConditionType.READY)


def is_settled(dataset: Conditioned) -> bool:
    """Whether the current generation of a Dataset is prepared, or cannot be prepared.

    A field that this release did not implement before an upgrade does not settle it.
    """
    status = dataset.status
    if status.observed_generation != dataset.metadata.generation:
        return False
    return any(ends_dataset(each.type, each.status, each.reason) for each in status.conditions)


def ends_dataset(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a Dataset means that it is prepared, or cannot be prepared."""
    failed = type_ == ConditionType.STALLED and reason != Reason.NOT_IMPLEMENTED
    return status == "True" and (failed or type_ == ConditionType.READY)
