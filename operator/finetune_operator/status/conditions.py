"""Conditions, as kstatus reads them.

An object is in exactly one state: working (`Reconciling`), done (`Ready`), failed (`Stalled`) or suspended
(`Suspended`). Entering one removes the other three, because a `Ready=False` would read as in progress and a
left-over `Stalled` as failed. Conditions of a domain (`Trained`, `Evaluated`, …) stay beside it.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final, Literal

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.computeprofile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.api.meta import Condition, Model, Resource
from finetune_operator.plan import Manifest
from finetune_operator.status.reasons import ConditionType, Reason

MESSAGE_LIMIT: Final = 1024
"""Characters; longer messages end in an ellipsis."""

BLOCKED: Final = "Blocked"
FAILED: Final = "Failed"

STATES: Final = (
    ConditionType.READY,
    ConditionType.RECONCILING,
    ConditionType.STALLED,
    ConditionType.SUSPENDED,
)


def shortened(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """The text, cut to `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def find(conditions: Iterable[Condition], type_: ConditionType) -> Condition | None:
    """The condition of this type."""
    return next((condition for condition in conditions if condition.type == type_), None)


def is_true(conditions: Iterable[Condition], type_: ConditionType) -> bool:
    """Whether the condition is there and True."""
    condition = find(conditions, type_)
    return condition is not None and condition.status == "True"


CONTINUES: Final = frozenset({Reason.NAME_CONFLICT, Reason.NOT_IMPLEMENTED, Reason.MAX_RUN_SECONDS_EXCEEDED})
"""Reasons of a run that is Stalled and continues all the same: when the foreign object is gone (an earlier
release called that Stalled), with the release that implements what it uses, and when the limit is raised."""


def is_finished(job: FineTuneJob) -> bool:
    """Whether a run has ended, well or badly; a run that has ended never starts again."""
    return any(ends_run(each.type, each.status, each.reason) for each in job.status.conditions)


def ends_run(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a FineTuneJob says that the run has ended."""
    failed = type_ == ConditionType.STALLED and reason not in CONTINUES
    return status == "True" and (failed or type_ == ConditionType.READY)


def is_prepared(dataset: Dataset) -> bool:
    """Whether a Dataset is Ready with the spec that it has now."""
    current = dataset.status.observed_generation == dataset.metadata.generation
    return current and is_true(dataset.status.conditions, ConditionType.READY)


def is_settled(dataset: Dataset) -> bool:
    """Whether this generation of a Dataset has been prepared, or cannot be.

    A name conflict is no end, as for runs; nor is what an earlier release did not act on.
    """
    status = dataset.status
    if status.observed_generation != dataset.metadata.generation:
        return False
    return any(ends_dataset(each.type, each.status, each.reason) for each in status.conditions)


def ends_dataset(type_: str, status: str, reason: str) -> bool:
    """Whether this condition of a Dataset says that its present generation is prepared, or cannot be."""
    failed = type_ == ConditionType.STALLED and reason not in {Reason.NAME_CONFLICT, Reason.NOT_IMPLEMENTED}
    return status == "True" and (failed or type_ == ConditionType.READY)


def with_condition(
    conditions: tuple[Condition, ...],
    type_: ConditionType,
    status: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions with this one set; its transition time moves only when its status does."""
    old = find(conditions, type_)
    moved = old is None or old.status != status
    new = Condition(
        type=type_,
        status=status,
        reason=reason,
        message=shortened(message),
        last_transition_time=now.replace(microsecond=0) if old is None or moved else old.last_transition_time,
        observed_generation=generation,
    )
    if old is None:
        return (*conditions, new)
    return tuple(new if condition is old else condition for condition in conditions)


def without(conditions: tuple[Condition, ...], *types: ConditionType) -> tuple[Condition, ...]:
    """The conditions without those of the given types."""
    return tuple(condition for condition in conditions if condition.type not in types)


def enter(
    conditions: tuple[Condition, ...],
    state: Literal[
        ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.SUSPENDED
    ],
    reason: str,
    message: str,
    *,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """The conditions of an object that is in this state now, and in no other."""
    others = without(conditions, *(other for other in STATES if other != state))
    return with_condition(others, state, "True", reason, message, generation=generation, now=now)


def status_manifest(status: Model) -> Manifest:
    """A status as it is written: camelCase, without empty fields."""
    return _without_empty(status.to_dict())


def _without_empty(node: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in node.items():
        inner = _without_empty(value) if isinstance(value, dict) else value
        if inner not in ({}, [], ""):
            kept[key] = inner
    return kept


def blocked(resource: Resource, reason: str, message: str, now: datetime) -> Manifest:
    """The whole status of an object that waits until somebody acts.

    A finished run keeps its verdict, and a prepared Dataset stays Ready.
    """
    return _in_state(resource, ConditionType.RECONCILING, reason, message, now=now, phase=BLOCKED)


def stalled(resource: Resource, reason: str, message: str, now: datetime) -> Manifest:
    """The whole status of an object that cannot go on.

    A finished run keeps its verdict, and a prepared Dataset stays Ready.
    """
    return _in_state(resource, ConditionType.STALLED, reason, message, now=now, phase=FAILED)


def _in_state(
    resource: Resource,
    state: Literal[ConditionType.RECONCILING, ConditionType.STALLED],
    reason: str,
    message: str,
    *,
    now: datetime,
    phase: str,
) -> Manifest:
    if not isinstance(
        resource, FineTuneJob | Dataset | DatasetVersion | Checkpoint | InferenceDeployment | ComputeProfile
    ):
        raise TypeError(f"{type(resource).__name__} has no status")
    generation = resource.metadata.generation
    update: dict[str, Any] = {"observed_generation": generation}
    if isinstance(resource, Dataset) and is_prepared(resource):
        update["conditions"] = with_condition(
            resource.status.conditions,
            ConditionType.REFRESHED,
            "False",
            reason,
            message,
            generation=generation,
            now=now,
        )
    elif not (isinstance(resource, FineTuneJob) and is_finished(resource)):
        update["conditions"] = enter(
            resource.status.conditions, state, reason, message, generation=generation, now=now
        )
        if isinstance(resource, FineTuneJob | Dataset):
            update["phase"] = phase
    return status_manifest(resource.status.model_copy(update=update))
