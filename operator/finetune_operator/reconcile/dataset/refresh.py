"""Another look at the source of a Dataset that is Ready, and stays so whatever comes of it."""

from typing import Any, Final, Literal

from finetune_operator.api.dataset import Dataset
from finetune_operator.engine.resources import JOB
from finetune_operator.plan import Plan
from finetune_operator.reconcile.dataset.recording import INCOMPLETE, found, labels_said, record
from finetune_operator.reconcile.dataset.sourcecheck import check_source, ended, job_names, made_in, number_of
from finetune_operator.reconcile.dataset.timing import earliest, until_slot
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.kstatus import finish_pass
from finetune_operator.reconcile.records.sourcechecks import until_check
from finetune_operator.reconcile.stages.backoff import Retry
from finetune_operator.reconcile.stages.request import StageFailed
from finetune_operator.reconcile.steps import Blocked, Done, Failed, Working
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.results import PrepareResult, StageResult

REFUSED: Final = frozenset(
    {Reason.FORBIDDEN, Reason.QUOTA_EXCEEDED, Reason.INVALID_SPEC, Reason.NAME_CONFLICT}
)
"""Reasons of passes that the API server stopped; a pass that gets through takes them back."""


def refresh(dataset: Dataset, draft: Draft, later: float | None) -> Plan:
    """One pass over a Ready Dataset; `later` is when something else becomes due, in seconds."""
    snapshot = draft.snapshot
    wait = until_check(dataset, snapshot.now)
    if job_names(dataset, number_of(dataset)).stage not in snapshot.children[JOB]:
        if wait != 0:
            return draft.plan(_unrefused(dataset), earliest(later, wait))
        slot = until_slot(dataset, snapshot.now)
        if slot > 0:
            return draft.plan(None, earliest(later, slot))
    outcome = check_source(dataset, draft)
    if isinstance(outcome, Working):
        return draft.plan(_begun(dataset, draft), earliest(later, outcome.requeue_after))
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
    refresh = dataset.status.refresh
    version = refresh.source_version if refresh is not None and prepared is None else None
    fields = {} if prepared is None else found(prepared)
    fields["refresh"] = ended(dataset, snapshot, version)
    return _failed(dataset, draft, outcome.reason, outcome.message, None, **fields)


def _prepared(outcome: Retry | StageFailed | Failed) -> PrepareResult | None:
    """What was found in the rows, if it is they that the look failed on."""
    result = None if isinstance(outcome, Failed) else outcome.result
    return result.prepare if result is not None else None


def _succeeded(dataset: Dataset, draft: Draft, prepared: PrepareResult | None) -> Plan | None:
    latest, refresh = dataset.status.latest_version, dataset.status.refresh
    if prepared is not None and prepared.unchanged:
        version = refresh.source_version if refresh is not None else None
        fields = {"refresh": ended(dataset, draft.snapshot, version)}
        return draft.plan(_status(dataset, draft, "True", Reason.SUCCEEDED, _same(latest), **fields))
    recorded = record(dataset, draft, prepared)
    if recorded is None:
        return None
    news = f"what is new in the source became DatasetVersion {recorded.name}"
    said = _same(latest) if recorded.name == latest else news
    now = draft.snapshot.now
    labels = labels_said(dataset.status.conditions, dataset, prepared, now)
    status = dataset.status.model_copy(update={**recorded.fields, "conditions": labels})
    ready = finish_pass(dataset, status, Done(Reason.SUCCEEDED, recorded.message), now)
    return draft.plan(_status(dataset, draft, "True", Reason.SUCCEEDED, said, **dict(ready.status)))


def _same(latest: str | None) -> str:
    return f"the source still has the rows of DatasetVersion {latest}"


def _failed(
    dataset: Dataset, draft: Draft, reason: str, message: str, requeue_after: float | None, **fields: Any
) -> Plan:
    said = (
        f"DatasetVersion {dataset.status.latest_version} stays in use; the last look at the source: {message}"
    )
    before = conditions.find(dataset.status.conditions, ConditionType.REFRESHED)
    if before is None or before.status == "True" or before.reason != reason:
        draft.event(EventReason.REFRESH_FAILED, said, "Warning")
    return draft.plan(_status(dataset, draft, "False", reason, said, **fields), requeue_after)


def _status(
    dataset: Dataset, draft: Draft, status: Literal["True", "False"], reason: str, message: str, **fields: Any
) -> dict[str, Any]:
    """The whole status, with the condition Refreshed and these fields."""
    new = dataset.status.model_copy(update=fields)
    refreshed = conditions.with_condition(
        new.conditions,
        ConditionType.REFRESHED,
        status,
        reason,
        message,
        generation=dataset.metadata.generation,
        now=draft.snapshot.now,
    )
    return conditions.status_manifest(new.model_copy(update={"conditions": refreshed}))


def _begun(dataset: Dataset, draft: Draft) -> dict[str, Any] | None:
    """Written only where a look begins whose Job is of another contract than that of the one before."""
    contract = made_in(dataset, draft)
    if contract == dataset.status.trainer_contract:
        return None
    return conditions.status_manifest(dataset.status.model_copy(update={"trainer_contract": contract}))


def _unrefused(dataset: Dataset) -> dict[str, Any] | None:
    refreshed = conditions.find(dataset.status.conditions, ConditionType.REFRESHED)
    if refreshed is None or refreshed.status == "True" or refreshed.reason not in REFUSED:
        return None
    left = conditions.without(dataset.status.conditions, ConditionType.REFRESHED)
    return conditions.status_manifest(dataset.status.model_copy(update={"conditions": left}))
