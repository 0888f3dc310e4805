# SPDX-License-Identifier: Apache-2.0
"""The end of a run or an Evaluation with `deletionPolicy: Delete`: stop its pods, and remove its folders."""

from collections.abc import Sequence
from datetime import timedelta

from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.engine.resources import CLAIM, JOB
from finetune_operator.manifests.labels import STAGE
from finetune_operator.observe.pod_status import has_ended
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.kstatus import finish_pass
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.records.contentremoval import REMOVAL_TIMEOUT, Removal, remove
from finetune_operator.reconcile.records.finalizer import without_finalizer
from finetune_operator.reconcile.stages.jobresults import pods_of
from finetune_operator.reconcile.stages.jobstate import is_unfinished, until_ended
from finetune_operator.reconcile.steps import Blocked, Working
from finetune_operator.stage_table import find_row
from finetune_operator.status.reasons import EventReason, Reason


def release(draft: Draft, owner: FineTuneJob | Evaluation, removals: Sequence[Removal]) -> Plan:
    """The plan of a pass that releases the owner once its folders are removed, or after a timeout."""
    snapshot = draft.snapshot
    remaining = (owner.metadata.deletion_timestamp or snapshot.now) + REMOVAL_TIMEOUT - snapshot.now
    halt = _stop(draft, owner) or _remove(draft, removals) if remaining > timedelta() else None
    if halt is None:
        if remaining <= timedelta():
            folders = " and ".join(removal.folder for removal in removals)
            draft.event(
                EventReason.CONTENT_KEPT,
                f"{folders} stays in the store: the operator could not remove it within"
                f" {REMOVAL_TIMEOUT // timedelta(hours=1)} hours; remove it yourself",
                "Warning",
            )
        return draft.plan(None, metadata=without_finalizer(owner))
    result = finish_pass(owner, owner.status, halt, snapshot.now)
    draft.events += result.events
    seconds = remaining.total_seconds()
    return draft.plan(result.manifest, min(result.requeue_after or seconds, seconds))


def is_without_claim(store: str, snapshot: Snapshot) -> bool:
    """Whether the folders in the store are gone because its claim is."""
    claim = storage.claim_name(store)
    return claim is not None and snapshot.is_missing(CLAIM, claim)


def _remove(draft: Draft, removals: Sequence[Removal]) -> Working | Blocked | None:
    halts = [halt for removal in removals if (halt := remove(draft, removal)) is not None]
    return halts[0] if halts else None


def _stop(draft: Draft, owner: FineTuneJob | Evaluation) -> Working | Blocked | None:
    """Delete the owner's Jobs, because nothing may write into a folder that is being removed."""
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
    whose = "run" if isinstance(owner, FineTuneJob) else owner.kind
    message = f"waiting for the {whose}'s pods to end before its folder in the store is removed"
    return until_ended(pods, Reason.CLEANING_UP, message, snapshot.now)


def _serves_deletion(job: Manifest) -> bool:
    row = find_row(job["metadata"].get("labels", {}).get(STAGE))
    return row is not None and row.serves_deletion
