# SPDX-License-Identifier: Apache-2.0
"""Removal of content from stores before an object with `deletionPolicy: Delete` goes.

The finalizer of records and their owners delays deletion until small Jobs have removed their folders, with
retries for one day. Nothing may write into such a folder, so the object's other pods are stopped first.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.labels import STAGE
from finetune_operator.api.meta import Resource
from finetune_operator.engine.resources import CLAIM, JOB
from finetune_operator.manifests.configs import cleanup_config
from finetune_operator.manifests.labels import FINALIZER, stage_job_name
from finetune_operator.manifests.volumes import run_folder
from finetune_operator.observe.pod_status import has_ended
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.inputs.indexes import address
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.model_lines import is_resolved
from finetune_operator.reconcile.passes import RETRY_SECONDS, Blocked, PlanBuilder, Working, finish_pass
from finetune_operator.reconcile.platform import profiles, storage
from finetune_operator.reconcile.stages.jobs import is_unfinished, pods_of, wait_until_ended
from finetune_operator.reconcile.stages.repeated_jobs import RETRIES, RepeatedJob
from finetune_operator.stage_table import find_row
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.references import ArtifactRef

Record = Checkpoint | DatasetVersion
Owner = FineTuneJob | Dataset | Evaluation


def finalizer_update(resource: Owner | Record) -> Manifest | None:
    """Metadata that makes the finalizer match the deletion policy; None if it matches already."""
    wanted = resource.spec.deletion_policy == "Delete"
    if has_finalizer(resource) == wanted:
        return None
    return {"finalizers": [*_others(resource), FINALIZER]} if wanted else without_finalizer(resource)


def without_finalizer(resource: Owner | Record) -> Manifest:
    """Metadata without our finalizer."""
    return {"finalizers": _others(resource)}


def has_finalizer(resource: Owner | Record) -> bool:
    """Whether the object has our finalizer, so it stays until the operator removes it."""
    return FINALIZER in resource.metadata.finalizers


def _others(resource: Owner | Record) -> list[str]:
    return [each for each in resource.metadata.finalizers if each != FINALIZER]


REMOVAL_TIMEOUT: Final = timedelta(hours=24)
"""Time after which an object is deleted although its content is still in use or its store does not answer."""


@dataclass(frozen=True, slots=True)
class Removal:
    """A folder to remove before its owner is deleted."""

    owner: Resource
    store: str
    secret: str | None
    folder: str
    """Uri of the folder, for messages."""
    artifact: ArtifactRef | None
    """The content to remove; None for the folder of a run."""
    advice: str
    """Advice on how to delete the owner and keep the folder, for messages."""
    run: str | None = None
    """Name of the folder of a run; None: the owner's uid."""


def remove(draft: PlanBuilder, removal: Removal) -> Working | Blocked | None:
    """Remove the folder with a Job; None once that is done."""
    snapshot, owner, claim = draft.snapshot, removal.owner, storage.claim_name(removal.store)
    profile = profiles.resolve_profile(None, "spec.compute.profile", owner.namespace, snapshot)
    retries = f"{RETRIES} for a day; {removal.advice}"
    content = removal.artifact or removal.run
    job = RepeatedJob(
        owner=owner,
        name=stage_job_name(owner, "cleanup", removal.store, *filter(None, [removal.run])),
        stage="cleanup",
        profile=None if isinstance(profile, Blocked) or profiles.check_trainer(profile) else profile,
        config=partial(cleanup_config, owner, removal.store, removal.secret, content),
        reason=Reason.CLEANING_UP,
        doing=f"{removal.folder} is being removed",
        failure_reason=Reason.CLEANUP_FAILED,
        failure=owner.name,
        retries=retries,
        announced=False,
    )
    if job.found(draft) is None and claim is not None and snapshot.is_missing(CLAIM, claim):
        return Blocked(
            Reason.STORE_NOT_FOUND,
            f"{removal.folder} cannot be removed: PersistentVolumeClaim {claim} does not exist in namespace"
            f" {owner.namespace}; {retries}",
            RETRY_SECONDS,
        )
    return job.run(draft)


def folder_name(evaluation: Evaluation, number: int) -> str:
    """Folder under `runs/` of the results of the Checkpoint with this number in the spec, from 0."""
    return f"{evaluation.uid}-{number}"


def removal(owner: Evaluation | Checkpoint, evaluation: Evaluation, number: int) -> Removal | None:
    """The removal of the folder of one Checkpoint, before `owner` is deleted; None if it is not known."""
    stores, name = evaluation.status.resolved.stores or (), folder_name(evaluation, number)
    if number >= len(stores):
        return None
    store = stores[number]
    return Removal(
        owner=owner,
        store=store.uri,
        secret=store.credentials,
        folder=run_folder(store.uri, name),
        artifact=None,
        run=name,
        advice=f"to delete the {owner.kind} without it, remove its finalizer finetune.dev/cleanup",
    )


def removals_of(checkpoint: Checkpoint, snapshot: Snapshot) -> tuple[Removal, ...]:
    """Those of the results of a terminating Checkpoint, by Evaluations with `deletionPolicy: Delete`.

    An Evaluation with Retain is evidence that stays, also of weights that do not.
    """
    here = address(checkpoint.namespace, checkpoint.name)
    measured = (snapshot.evaluations.get(name) for name, _ in snapshot.measurements_of(here))
    removals = (
        removal(checkpoint, evaluation, evaluation.spec.checkpoints.index(checkpoint.name))
        for evaluation in measured
        if evaluation is not None
        and evaluation.spec.deletion_policy == "Delete"
        and is_resolved(evaluation, checkpoint)
    )
    return tuple(each for each in removals if each is not None)


def release(draft: PlanBuilder, owner: FineTuneJob | Evaluation, removals: Sequence[Removal]) -> Plan:
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


def _remove(draft: PlanBuilder, removals: Sequence[Removal]) -> Working | Blocked | None:
    halts = [halt for removal in removals if (halt := remove(draft, removal)) is not None]
    return halts[0] if halts else None


def _stop(draft: PlanBuilder, owner: FineTuneJob | Evaluation) -> Working | Blocked | None:
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
    return wait_until_ended(pods, Reason.CLEANING_UP, message, snapshot.now)


def _serves_deletion(job: Manifest) -> bool:
    row = find_row(job["metadata"].get("labels", {}).get(STAGE))
    return row is not None and row.serves_deletion
