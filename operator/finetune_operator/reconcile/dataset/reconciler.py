# SPDX-License-Identifier: Apache-2.0
"""Prepare each generation of a Dataset once, re-check its sources when that is due, and record new rows.

Each check of the sources is a prepare Job; `status.refresh.checks` counts the finished checks. Until one with
the present spec succeeds, a pass prepares: this check decides whether the Dataset becomes Ready, and after a
failure a user can request another one. Later checks refresh: new rows become a DatasetVersion, and a failure
sets the condition Refreshed to False while the Dataset stays Ready.
"""

from dataclasses import replace
from typing import Any, Final, Literal

from finetune_operator.api.compute import NO_CHOICE
from finetune_operator.api.dataset import Dataset, RefreshStatus
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.api.references import StoreReference
from finetune_operator.engine.resources import JOB
from finetune_operator.plan import Plan
from finetune_operator.reconcile.dataset.recording import INCOMPLETE, record, row_fields, with_unread
from finetune_operator.reconcile.dataset.source_check import (
    PREPARE,
    check_number,
    check_source,
    delete_old_jobs,
    finish_check,
    job_names,
    profile_of,
    retry_of,
    sources_of,
    with_known_sources,
)
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import (
    Blocked,
    Done,
    Failed,
    PassOutcome,
    PlanBuilder,
    Working,
    earliest,
    finish_pass,
)
from finetune_operator.reconcile.platform import profiles, queues, storage
from finetune_operator.reconcile.records.content_removal import finalizer_update
from finetune_operator.reconcile.records.retention import delete_records_and_release, versions_of
from finetune_operator.reconcile.records.source_check_schedule import (
    check_request,
    is_check_requested,
    until_check,
    until_slot,
)
from finetune_operator.reconcile.stages.jobs import is_stage_running
from finetune_operator.reconcile.stages.retries import Retry
from finetune_operator.reconcile.stages.stage_request import StageFailed
from finetune_operator.status import conditions
from finetune_operator.status.conditions import is_prepared, is_settled, status_manifest
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.references import strip_query
from finetune_trainer.contract.results import PrepareResult, StageResult


def prepare(dataset: Dataset, draft: PlanBuilder, later: float | None) -> Plan:
    """One pass over a Dataset that is not prepared.

    Args:
        later: seconds until something else becomes due.
    """
    refused = _refused(dataset)
    if refused is not None:
        return _plan(dataset, draft, later, refused)
    outcome = check_source(dataset, draft)
    if isinstance(outcome, Retry):
        return _plan(dataset, draft, later, outcome.halt, retry=outcome.status)
    if isinstance(outcome, StageResult):
        recorded = record(dataset, draft, outcome.prepare)
        if recorded is not None:
            found = with_unread(dataset.status.conditions, dataset, outcome.prepare, draft.snapshot.now)
            dataset = dataset.model_copy(
                update={"status": dataset.status.model_copy(update={"conditions": found})}
            )
            return _plan(dataset, draft, later, Done(Reason.SUCCEEDED, recorded.message), **recorded.fields)
        outcome = StageFailed(Reason.RESULT_LOST, INCOMPLETE, None)
    if isinstance(outcome, StageFailed):
        draft.event(EventReason.STAGE_FAILED, f"prepare failed: {outcome.message}", "Warning")
        prepared = outcome.result.prepare if outcome.result is not None else None
        fields = {} if prepared is None else row_fields(prepared)
        refresh = finish_check(dataset, draft.snapshot, None)
        failed = Failed(outcome.reason, outcome.message)
        return _plan(dataset, draft, later, failed, **fields, refresh=refresh)
    return _plan(dataset, draft, later, outcome)


def _refused(dataset: Dataset) -> Failed | None:
    messages = find_unimplemented(dataset.spec)
    if messages:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages))
    checked = (storage.check_source(source.uri, f"spec.{field}.uri") for field, source in sources_of(dataset))
    return next(filter(None, checked), None) or storage.check_form(dataset.spec.store)


def _plan(
    dataset: Dataset, draft: PlanBuilder, later: float | None, halt: PassOutcome, **fields: Any
) -> Plan:
    status = dataset.status.model_copy(
        update={
            # The condition is about checks with an earlier spec.
            "conditions": conditions.drop_conditions(dataset.status.conditions, ConditionType.REFRESHED),
            "refresh": _refresh_status(dataset, halt),
            "retry": None if isinstance(halt, Done | Failed) else retry_of(dataset),
            **fields,
        }
    )
    result = finish_pass(dataset, status, halt, draft.snapshot.now)
    draft.events += result.events
    return draft.plan(result.manifest, earliest(later, result.requeue_after))


def _refresh_status(dataset: Dataset, halt: PassOutcome) -> RefreshStatus | None:
    """Earlier checks of the source, as long as none with this spec has succeeded."""
    number = check_number(dataset)
    before = dataset.status.refresh if number else None
    answered = check_request(dataset) if isinstance(halt, Failed) else None
    requested = answered or (before.requested if before is not None else None)
    if not number and requested is None:
        return None
    return RefreshStatus(
        checks=number,
        checked_at=before.checked_at if before is not None else None,
        requested=requested,
    )


REFUSED: Final = frozenset(
    {Reason.FORBIDDEN, Reason.QUOTA_EXCEEDED, Reason.INVALID_SPEC, Reason.NAME_CONFLICT}
)
"""Reasons of passes whose writes the API server rejected; the next pass that succeeds removes them."""


def refresh(dataset: Dataset, draft: PlanBuilder, later: float | None) -> Plan:
    """One pass over a Dataset that is Ready.

    Args:
        later: seconds until something else becomes due.
    """
    snapshot = draft.snapshot
    wait = until_check(dataset, snapshot.now)
    if job_names(dataset, check_number(dataset)).stage not in snapshot.children[JOB]:
        if wait != 0:
            return draft.plan(_without_rejection(dataset), earliest(later, wait))
        slot = until_slot(dataset, snapshot.now)
        if slot > 0:
            return draft.plan(None, earliest(later, slot))
    outcome = check_source(dataset, draft)
    if isinstance(outcome, Working):
        return draft.plan(None, earliest(later, outcome.requeue_after))
    if isinstance(outcome, Blocked):
        return _failed(
            dataset, draft, outcome.reason, outcome.message, earliest(later, outcome.requeue_after)
        )
    if isinstance(outcome, StageResult):
        plan = _succeeded(dataset, draft, outcome.prepare)
        if plan is not None:
            return plan
        outcome = StageFailed(Reason.RESULT_LOST, INCOMPLETE, None)
    prepared = _prepared(outcome)
    fields = {} if prepared is None else row_fields(prepared)
    fields["refresh"] = finish_check(dataset, snapshot, None)
    if prepared is None:
        fields["refresh"] = with_known_sources(fields["refresh"], dataset)
    return _failed(dataset, draft, outcome.reason, outcome.message, None, **fields)


def _prepared(outcome: Retry | StageFailed | Failed) -> PrepareResult | None:
    """What prepare found in the rows, if the check failed because of them."""
    result = None if isinstance(outcome, Failed) else outcome.result
    return result.prepare if result is not None else None


def _succeeded(dataset: Dataset, draft: PlanBuilder, prepared: PrepareResult | None) -> Plan | None:
    latest = dataset.status.latest_version
    if prepared is not None and prepared.unchanged:
        checked = finish_check(dataset, draft.snapshot, None)
        fields = {"refresh": with_known_sources(checked, dataset)}
        return draft.plan(_status(dataset, draft, "True", Reason.SUCCEEDED, _unchanged(dataset), **fields))
    recorded = record(dataset, draft, prepared)
    if recorded is None:
        return None
    new = f"new rows of {_changed(dataset, prepared)} became DatasetVersion {recorded.name}"
    message = _unchanged(dataset) if recorded.name == latest else new
    now = draft.snapshot.now
    labels = with_unread(dataset.status.conditions, dataset, prepared, now)
    status = dataset.status.model_copy(update={**recorded.fields, "conditions": labels})
    ready = finish_pass(dataset, status, Done(Reason.SUCCEEDED, recorded.message), now)
    return draft.plan(_status(dataset, draft, "True", Reason.SUCCEEDED, message, **dict(ready.status)))


def _changed(dataset: Dataset, prepared: PrepareResult | None) -> str:
    """The sources whose content has another version than at the last check."""
    refresh, sources = dataset.status.refresh, dataset.spec.sources
    known = refresh.sources if refresh is not None else None
    found = prepared.sources if prepared is not None else ()
    if known is None or len(sources) == 1 or not len(known) == len(found) == len(sources):
        return "the source" if len(sources) == 1 else "the sources"
    changed = [
        strip_query(source.uri)
        for source, before, after in zip(sources, known, found, strict=True)
        if before.version is None or before.version != after.version
    ]
    return ", ".join(dict.fromkeys(changed)) or "the sources"


def _unchanged(dataset: Dataset) -> str:
    what = "the source still has" if len(dataset.spec.sources) == 1 else "the sources still have"
    return f"{what} the rows of DatasetVersion {dataset.status.latest_version}"


def _failed(
    dataset: Dataset,
    draft: PlanBuilder,
    reason: str,
    message: str,
    requeue_after: float | None,
    **fields: Any,
) -> Plan:
    latest = dataset.status.latest_version
    of = "the source" if len(dataset.spec.sources) == 1 else "the sources"
    text = f"DatasetVersion {latest} stays in use; the last check of {of}: {message}"
    before = conditions.find_condition(dataset.status.conditions, ConditionType.REFRESHED)
    if before is None or before.status == "True" or before.reason != reason:
        draft.event(EventReason.REFRESH_FAILED, text, "Warning")
    return draft.plan(_status(dataset, draft, "False", reason, text, **fields), requeue_after)


def _status(
    dataset: Dataset,
    draft: PlanBuilder,
    status: Literal["True", "False"],
    reason: str,
    message: str,
    **fields: Any,
) -> dict[str, Any]:
    """The whole status, with the condition Refreshed and these fields."""
    new = dataset.status.model_copy(update=fields)
    refreshed = conditions.set_condition(
        new.conditions,
        ConditionType.REFRESHED,
        status,
        reason,
        message,
        generation=dataset.metadata.generation,
        now=draft.snapshot.now,
    )
    return conditions.status_manifest(new.model_copy(update={"conditions": refreshed}))


def _without_rejection(dataset: Dataset) -> dict[str, Any] | None:
    refreshed = conditions.find_condition(dataset.status.conditions, ConditionType.REFRESHED)
    if refreshed is None or refreshed.status == "True" or refreshed.reason not in REFUSED:
        return None
    others = conditions.drop_conditions(dataset.status.conditions, ConditionType.REFRESHED)
    return conditions.status_manifest(dataset.status.model_copy(update={"conditions": others}))


__all__ = ["needs", "reconcile"]


def needs(dataset: Dataset, snapshot: Snapshot) -> Needs:
    """Claims and queues to look up: none while a check of the source runs, or while none is due.

    Until then, also the namespace, if its labels decide about the default profile.
    """
    if is_settled(dataset) and until_check(dataset, snapshot.now) != 0:
        return NOTHING
    labels = profiles.label_needs((None,), dataset.namespace, snapshot)
    if is_stage_running(snapshot):
        return labels
    profile = profile_of(dataset, snapshot, profiles.named_profile)
    store: StoreReference | Blocked | None = None
    if not isinstance(profile, Blocked):
        store = profiles.resolve_store(dataset.spec.store, profile, dataset.namespace)
    store_uri = store.uri if isinstance(store, StoreReference) else None
    claims = storage.claims_of(store_uri, *(source.uri for source in dataset.spec.sources))
    queued = queues.queue_needs(queues.queues_of(profile, (PREPARE,), NO_CHOICE))
    return queues.merge_needs(claims, labels, queued)


def reconcile(dataset: Dataset, snapshot: Snapshot) -> Plan:
    """The plan of one pass over a Dataset."""
    if dataset.metadata.deletion_timestamp is not None:
        return delete_records_and_release(dataset, versions_of(dataset, snapshot), snapshot)
    current = _without_deleted_versions(dataset, snapshot)
    plan = _reconcile(current, snapshot)
    if plan.status is None and current.status != dataset.status:
        plan = replace(plan, status=status_manifest(current.status))
    return replace(plan, metadata=finalizer_update(dataset))


def _without_deleted_versions(dataset: Dataset, snapshot: Snapshot) -> Dataset:
    """The Dataset with the versions in its status that still exist."""
    existing = tuple(each for each in dataset.status.versions if each.name in snapshot.datasetversions)
    if len(existing) == len(dataset.status.versions):
        return dataset
    return dataset.model_copy(update={"status": dataset.status.model_copy(update={"versions": existing})})


def _reconcile(dataset: Dataset, snapshot: Snapshot) -> Plan:
    draft = PlanBuilder(snapshot)
    later = delete_old_jobs(dataset, draft)
    if is_prepared(dataset):
        return refresh(dataset, draft, later)
    if is_settled(dataset) and not is_check_requested(dataset):
        return draft.plan(None, later)
    return prepare(dataset, draft, later)
