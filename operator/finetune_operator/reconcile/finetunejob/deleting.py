"""A run that is being deleted: with `deletionPolicy: Delete`, remove its pods, its folder and its records."""

from datetime import timedelta

from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.engine.resources import CLAIM, JOB
from finetune_operator.manifests.labels import STAGE
from finetune_operator.observe.podstatus import has_ended
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.finetunejob.identity import records
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.kstatus import finish_pass
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.records.contentremoval import REMOVAL_TIMEOUT, Removal, remove
from finetune_operator.reconcile.records.finalizer import has_finalizer, without_finalizer
from finetune_operator.reconcile.records.ownership import delete_records, delete_with
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.jobstate import is_unfinished, until_ended
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stagetable import find_row
from finetune_operator.status.reasons import EventReason, Reason


def delete(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    """One pass. It deletes the records first, and the run once its folder is removed or after a timeout."""
    store = job.status.resolved.store
    is_simple = not has_finalizer(job) or snapshot.is_namespace_terminating
    if store is None or is_simple or _is_without_claim(store, snapshot):
        return delete_with(job, records(job, snapshot), snapshot)
    draft = Draft(snapshot)
    remaining = _remaining_time(job, snapshot)
    halt = _stop(draft) or remove(draft, _removal(job, store)) if remaining > timedelta() else None
    delete_records(draft, records(job, snapshot))
    if halt is None:
        if remaining <= timedelta():
            draft.event(
                EventReason.CONTENT_KEPT,
                f"{_folder(job, store)} stays in the store: the operator could not remove it within"
                f" {REMOVAL_TIMEOUT // timedelta(hours=1)} hours; remove it yourself",
                "Warning",
            )
        return draft.plan(None, metadata=without_finalizer(job))
    result = finish_pass(job, job.status, halt, snapshot.now)
    draft.events += result.events
    seconds = remaining.total_seconds()
    return draft.plan(result.manifest, min(result.requeue_after or seconds, seconds))


def _is_without_claim(store: str, snapshot: Snapshot) -> bool:
    """Whether the folder is gone because its claim is."""
    claim = storage.claim_name(store)
    return claim is not None and snapshot.is_missing(CLAIM, claim)


def _remaining_time(job: FineTuneJob, snapshot: Snapshot) -> timedelta:
    return (job.metadata.deletion_timestamp or snapshot.now) + REMOVAL_TIMEOUT - snapshot.now


def _stop(draft: Draft) -> Working | Blocked | None:
    """Delete the run's Jobs, because nothing may write into a folder that is being removed."""
    snapshot = draft.snapshot
    running = [
        job for job in snapshot.children[JOB].values() if is_unfinished(job) and not _serves_deletion(job)
    ]
    for job in running:
        draft.remove(job)
    pods = [pod for job in running for pod in pods_of(job, snapshot)]
    pods += [pod for orphans in snapshot.orphans.values() for pod in orphans if not has_ended(pod)]
    if not running and not pods:
        return None
    message = "waiting for the run's pods to end before its folder in the store is removed"
    return until_ended(pods, Reason.CLEANING_UP, message, snapshot.now)


def _serves_deletion(job: Manifest) -> bool:
    row = find_row(job["metadata"].get("labels", {}).get(STAGE))
    return row is not None and row.serves_deletion


def _removal(job: FineTuneJob, store: str) -> Removal:
    return Removal(
        owner=job,
        store=store,
        secret=job.status.resolved.store_credentials,
        folder=_folder(job, store),
        artifact=None,
        advice="to delete the run without its folder, remove its finalizer finetune.dev/cleanup",
    )


def _folder(job: FineTuneJob, store: str) -> str:
    return f"{store.rstrip('/')}/runs/{job.uid}"
