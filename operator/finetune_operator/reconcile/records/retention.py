# SPDX-License-Identifier: Apache-2.0
"""Retention of records: which are still needed, and which go with their owner or beyond a history limit.

A record is needed while a run, an Evaluation or an endpoint needs its content. Each record is checked in its
own pass, so the cost does not grow with the history. As after a deletion by a user, the content is removed
only if the record's deletionPolicy is Delete.
"""

from collections.abc import Iterable
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.api.evaluation import LiveComparison
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.inference_deployment import InferenceDeployment
from finetune_operator.api.labels import OPERATOR, OWNER_KIND
from finetune_operator.plan import Delete, Event, Manifest, Plan
from finetune_operator.reconcile.inputs.indexes import address, version_owner
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.model_lines import is_rejected
from finetune_operator.reconcile.passes import PlanBuilder
from finetune_operator.reconcile.platform import profiles
from finetune_operator.reconcile.platform.storage import is_same_place
from finetune_operator.reconcile.records.content_removal import (
    Owner,
    Record,
    has_finalizer,
    without_finalizer,
)
from finetune_operator.status.conditions import find_condition, is_finished
from finetune_operator.status.reasons import ConditionType, EventReason, Reason


def waits_for_users(record: Record) -> bool:
    """Whether the record is being deleted and its content stays until no run or endpoint needs it."""
    state = find_condition(record.status.conditions, ConditionType.RECONCILING)
    is_terminating = record.metadata.deletion_timestamp is not None
    return is_terminating and state is not None and state.reason == Reason.IN_USE


def find_users(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    """Endpoints, unfinished runs and Evaluations that read the record's content, or will.

    Endpoints of other namespaces count if the content is in a bucket and they have served it: a pin alone is
    the claim of a tenant who knows a digest. They are not named.
    """
    here = address(record.namespace, record.name)
    runs = {
        f"FineTuneJob {job.name}"
        for job in snapshot.runs_with(here)
        if job.namespace == record.namespace
        and job.metadata.deletion_timestamp is None
        and not is_finished(job)
        and _reads(job, record)
    }
    runs |= {
        f"Evaluation {evaluation.name}"
        for evaluation in snapshot.evaluations_with(here)
        if evaluation.namespace == record.namespace
        and evaluation.metadata.deletion_timestamp is None
        and not is_finished(evaluation)
        and _measures(evaluation, record)
    }
    if isinstance(record, DatasetVersion):
        return tuple(sorted(runs))
    candidates = (*snapshot.endpoints_with(here), *snapshot.endpoints_with(record.spec.digest))
    endpoints = {
        f"InferenceDeployment {endpoint.name}"
        for endpoint in candidates
        if endpoint.namespace == record.namespace
        and (_holds(endpoint, record.spec.digest) or _pins(endpoint, record.name))
    }
    elsewhere = {
        "an InferenceDeployment in another namespace"
        for endpoint in candidates
        if endpoint.namespace != record.namespace
        and is_same_place(record.spec.uri, endpoint.namespace, record.namespace)
        and _serves(endpoint, record.spec.digest)
    }
    return tuple(sorted(endpoints | elsewhere | runs))


def _holds(endpoint: InferenceDeployment, digest: str) -> bool:
    """Whether the endpoint serves or pins this content.

    Only the digest decides, because one place in a store can have several spellings.
    """
    pinned = any(model.pin is not None and model.pin.digest == digest for model in endpoint.spec.models)
    return (pinned and endpoint.metadata.deletion_timestamp is None) or _serves(endpoint, digest)


def _serves(endpoint: InferenceDeployment, digest: str) -> bool:
    """Whether the revision that has the requests of the endpoint has this content."""
    served = any(model.digest == digest for model in endpoint.status.models)
    return served and endpoint.metadata.deletion_timestamp is None


def _pins(endpoint: InferenceDeployment, checkpoint: str) -> bool:
    pinned = any(
        model.pin is not None and model.pin.checkpoint == checkpoint for model in endpoint.spec.models
    )
    return pinned and endpoint.metadata.deletion_timestamp is None


def _measures(evaluation: Evaluation, record: Record) -> bool:
    """Whether it reads the record, or will. One that waits does not start with a terminating record."""
    resolved = evaluation.status.resolved
    begun, is_live = resolved.dataset_version is not None, record.metadata.deletion_timestamp is None
    if isinstance(record, DatasetVersion):
        names = {resolved.dataset_version if begun else evaluation.spec.dataset.ref.version}
    else:
        names = set(evaluation.spec.checkpoints)
    compared = evaluation.status.live
    compares = compared is not None and compared.checkpoint == record.name and not evaluation.spec.suspend
    return (record.name in names and (begun or is_live)) or compares


def readers_of(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    """Unfinished runs that read this content through another record, which may be terminating too."""
    return _evaluations_that_read(record, snapshot) + tuple(
        f"FineTuneJob {job.name}"
        if job.namespace == record.namespace
        else "a FineTuneJob in another namespace"
        for job in snapshot.runs_with(record.spec.digest)
        if job.metadata.deletion_timestamp is None
        and not is_finished(job)
        and is_same_place(job.status.resolved.store or "", job.namespace, record.namespace)
        and _has_read(job, record)
    )


def _evaluations_that_read(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    return tuple(
        f"Evaluation {evaluation.name}"
        if evaluation.namespace == record.namespace
        else "an Evaluation in another namespace"
        for evaluation in snapshot.evaluations_with(record.spec.digest)
        if evaluation.metadata.deletion_timestamp is None
        and not is_finished(evaluation)
        and _is_reachable(record, evaluation.namespace)
    )


def _is_reachable(record: Record, namespace: str) -> bool:
    """Whether pods of this namespace can read the record's content."""
    stores = record.status.locations if isinstance(record, DatasetVersion) else (record.spec.uri,)
    return any(is_same_place(store, namespace, record.namespace) for store in stores)


def _has_read(job: FineTuneJob, record: Record) -> bool:
    if isinstance(record, DatasetVersion):
        resolved = job.status.resolved
        return record.spec.digest in {resolved.dataset_digest, resolved.evaluation_dataset_digest}
    made = any(checkpoint.digest == record.spec.digest for checkpoint in job.status.checkpoints)
    compared = _compared(job)
    compares = compared is not None and compared.digest == record.spec.digest
    return made or compares or job.status.resolved.parent_digest == record.spec.digest


def _reads(job: FineTuneJob, record: Record) -> bool:
    if isinstance(record, DatasetVersion):
        evaluated, resolved = job.spec.evaluation, job.status.resolved
        rows = None if evaluated is None else evaluated.dataset
        references = (job.spec.dataset.ref, None if rows is None else rows.ref)
        return record.name in {resolved.dataset_version, resolved.evaluation_dataset_version} or any(
            ref is not None and ref.name == record.spec.dataset and ref.version == record.name
            for ref in references
        )
    made = any(checkpoint.name == record.name for checkpoint in job.status.checkpoints)
    # A run does not start with a record that is being deleted, so a waiting run delays no deletion.
    waits = record.metadata.deletion_timestamp is None and job.spec.base_model.checkpoint == record.name
    compared = _compared(job)
    compares = compared is not None and compared.checkpoint == record.name
    return made or waits or compares or job.status.resolved.parent_checkpoint == record.name


def _compared(job: FineTuneJob) -> LiveComparison | None:
    """The champion that a pod of the run measures, or will."""
    measures = job.status.evaluation is None and not job.spec.suspend
    return job.status.live if measures else None


MAX_NAMES_IN_MESSAGE: Final = 8


def delete_records_and_release(owner: Owner, records: Iterable[Record], snapshot: Snapshot) -> Plan:
    """Delete the records of an owner that is being deleted, except needed ones, and release the owner."""
    if not has_finalizer(owner):
        return Plan()
    draft = PlanBuilder(snapshot)
    delete_records(draft, records)
    return draft.plan(None, metadata=without_finalizer(owner))


def delete_records(draft: PlanBuilder, records: Iterable[Record]) -> None:
    """Delete the records of an owner that is being deleted, except those that are still needed.

    A record whose own policy is Retain stays. If the namespace is being deleted, Kubernetes deletes all of
    them. The event repeats in the same words until one of the records is gone.
    """
    snapshot = draft.snapshot
    deleted, kept = [], []
    for record in () if snapshot.is_namespace_terminating else records:
        reason = _why_it_stays(record, snapshot)
        if reason:
            kept.append(f"{record.name} ({reason})")
            continue
        deleted.append(record.name)
        if record.metadata.deletion_timestamp is None:
            draft.remove(deletion_target(record), "Background")
    if deleted or kept:
        draft.event(
            EventReason.RECORDS_DELETED, f"deleted records: {_listed(deleted)}; kept: {_listed(kept)}"
        )


def versions_of(owner: Owner, snapshot: Snapshot) -> tuple[DatasetVersion, ...]:
    """The DatasetVersions that this Dataset, or this run with dataset.source, has made."""
    return tuple(snapshot.versions_made_by(version_owner(owner.kind, owner.namespace, owner.name)))


def _why_it_stays(record: Record, snapshot: Snapshot) -> str:
    if record.spec.deletion_policy != "Delete":
        return f"deletionPolicy: {record.spec.deletion_policy}"
    if isinstance(record, Checkpoint) and record.status.promoted_at is not None and not is_rejected(record):
        return "promoted"
    return ", ".join(f"in use by {user}" for user in find_users(record, snapshot)[:MAX_NAMES_IN_MESSAGE])


def deletion_target(record: Record) -> Manifest:
    """The record as the pass read it, as a manifest for its deletion."""
    metadata = record.metadata
    return {
        "apiVersion": record.api_version,
        "kind": record.kind,
        "metadata": {
            "name": record.name,
            "namespace": record.namespace,
            "uid": record.uid,
            "resourceVersion": metadata.resource_version,
        },
    }


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES_IN_MESSAGE} more" if len(names) > MAX_NAMES_IN_MESSAGE else ""
    return ", ".join(names[:MAX_NAMES_IN_MESSAGE]) + more if names else "none"


def enforce_limit(record: Record, snapshot: Snapshot) -> Plan | None:
    """Delete the record if it is beyond its history limit; None if it stays."""
    found = (
        _checkpoint_limit(record, snapshot)
        if isinstance(record, Checkpoint)
        else _version_limit(record, snapshot)
    )
    if found is None:
        return None
    limit, field = found
    newer = snapshot.newer()
    if newer == 0 or newer < limit or _is_kept(record, snapshot):
        return None
    message = (
        f"{record.kind} {record.name} is deleted: {newer} newer ones exist, and {field} is {limit};"
        f" its content {'is removed' if record.spec.deletion_policy == 'Delete' else 'stays in the store'}"
    )
    return Plan(
        delete=(Delete(deletion_target(record), "Background"),),
        events=(Event("Normal", EventReason.HISTORY_LIMIT_EXCEEDED, message),),
    )


def _is_kept(record: Record, snapshot: Snapshot) -> bool:
    """Whether the record is needed, or a user has changed it."""
    return (
        is_edited(record) or snapshot.checkpoints.is_origin(record.name) or bool(find_users(record, snapshot))
    )


def is_edited(record: Record) -> bool:
    """Whether anyone but this operator has set a field of the record, including its approval or a label.

    A record without managed fields counts as edited.
    """
    managers = {each.manager for each in record.metadata.managed_fields if not each.subresource}
    return managers != {OPERATOR}


def _run(checkpoint: Checkpoint, snapshot: Snapshot) -> FineTuneJob | None:
    """The finished run that made the Checkpoint; without it the limit is unknown."""
    made_by = checkpoint.spec.lineage.job
    run = snapshot.finetunejobs.get(made_by.name)
    return run if run is not None and run.uid == made_by.uid and is_finished(run) else None


def _checkpoint_limit(checkpoint: Checkpoint, snapshot: Snapshot) -> tuple[int, str] | None:
    """The limit and the field that sets it; None if this Checkpoint has no limit."""
    limited = any(each.spec.limits.checkpoints is not None for each in snapshot.profiles.values())
    if not limited or checkpoint.status.promoted_at is not None:
        return None
    run = _run(checkpoint, snapshot)
    if run is None or _represents_run(checkpoint, run, snapshot):
        return None
    named = run.status.resolved.profile or run.spec.compute.profile
    # The run has used the profile, so the present labels of the namespace do not matter.
    profile = profiles.named_profile(named, "spec.compute.profile", run.namespace, snapshot)
    if not isinstance(profile, ComputeProfile) or profile.spec.limits.checkpoints is None:
        return None
    return profile.spec.limits.checkpoints, f"limits.checkpoints of ComputeProfile {profile.name}"


def _represents_run(checkpoint: Checkpoint, run: FineTuneJob, snapshot: Snapshot) -> bool:
    """Whether the run always keeps this Checkpoint: the evaluated one, or else that of the last step."""
    live = [each for each in snapshot.checkpoints.of_run(run.uid) if each.metadata.deletion_timestamp is None]
    evaluated = run.status.evaluation.checkpoint if run.status.evaluation is not None else None
    kept = max(live, key=lambda each: (each.name == evaluated, each.spec.step, each.name), default=None)
    return kept is None or kept.name == checkpoint.name


def _version_limit(version: DatasetVersion, snapshot: Snapshot) -> tuple[int, str] | None:
    """The limit and the field that sets it; None if there is none or this is the latest version."""
    if version.metadata.labels.get(OWNER_KIND) != Dataset.__name__:
        return None
    dataset = snapshot.datasets.get(version.spec.dataset)
    if dataset is None or dataset.status.latest_version in {None, version.name}:
        return None
    limit = dataset.spec.version_history_limit
    return None if limit is None else (limit, f"spec.versionHistoryLimit of Dataset {dataset.name}")
