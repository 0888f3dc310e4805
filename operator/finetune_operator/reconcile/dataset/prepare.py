# SPDX-License-Identifier: Apache-2.0
"""Prepare a Dataset: the first check of its sources with a spec, and checks that a user requests after a
failure."""

from typing import Any

from finetune_operator.api.dataset import Dataset, RefreshStatus
from finetune_operator.plan import Plan
from finetune_operator.reconcile.dataset.recording import INCOMPLETE, record, row_fields, with_unread
from finetune_operator.reconcile.dataset.sourcecheck import (
    check_number,
    check_source,
    finish_check,
    retry_of,
    sources_of,
)
from finetune_operator.reconcile.dataset.timing import earliest
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.kstatus import finish_pass
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.records.sourcechecks import check_request
from finetune_operator.reconcile.stages.backoff import Retry
from finetune_operator.reconcile.stages.request import StageFailed
from finetune_operator.reconcile.steps import Done, Failed, Halt
from finetune_operator.status import conditions
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_operator.status.reserved_fields import not_implemented
from finetune_trainer.contract.results import StageResult


def prepare(dataset: Dataset, draft: Draft, later: float | None) -> Plan:
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
    messages = not_implemented(dataset.spec)
    if messages:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages))
    checked = (storage.check_source(source.uri, f"spec.{field}.uri") for field, source in sources_of(dataset))
    return next(filter(None, checked), None) or storage.check_form(dataset.spec.store)


def _plan(dataset: Dataset, draft: Draft, later: float | None, halt: Halt, **fields: Any) -> Plan:
    status = dataset.status.model_copy(
        update={
            # The condition is about checks with an earlier spec.
            "conditions": conditions.without(dataset.status.conditions, ConditionType.REFRESHED),
            "refresh": _refresh_status(dataset, halt),
            "retry": None if isinstance(halt, Done | Failed) else retry_of(dataset),
            **fields,
        }
    )
    result = finish_pass(dataset, status, halt, draft.snapshot.now)
    draft.events += result.events
    return draft.plan(result.manifest, earliest(later, result.requeue_after))


def _refresh_status(dataset: Dataset, halt: Halt) -> RefreshStatus | None:
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
