"""What goes with an object that has `deletionPolicy: Delete`, and the finalizer that waits for it."""

from collections.abc import Iterable
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.api.finetunejob import FineTuneJob
from finetune_operator.api.inferencedeployment import InferenceDeployment
from finetune_operator.manifests.labels import FINALIZER
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.indexes import address, version_owner
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.checkpoints import is_rejected
from finetune_operator.status.conditions import find
from finetune_operator.status.finished import is_finished
from finetune_operator.status.reasons import ConditionType, EventReason, Reason

Record = Checkpoint | DatasetVersion
Owner = FineTuneJob | Dataset

MAX_NAMES_IN_MESSAGE: Final = 8


def finalizer_update(resource: Owner | Record) -> Manifest | None:
    """Metadata with the finalizer where the policy is Delete, else without; None where nothing changes."""
    wanted = resource.spec.deletion_policy == "Delete"
    if has_finalizer(resource) == wanted:
        return None
    return {"finalizers": [*_others(resource), FINALIZER]} if wanted else without_finalizer(resource)


def without_finalizer(resource: Owner | Record) -> Manifest:
    """Metadata without the finalizer."""
    return {"finalizers": _others(resource)}


def has_finalizer(resource: Owner | Record) -> bool:
    """Whether the object stays until this operator has let it go."""
    return FINALIZER in resource.metadata.finalizers


def _others(resource: Owner | Record) -> list[str]:
    return [each for each in resource.metadata.finalizers if each != FINALIZER]


def delete_with(owner: Owner, records: Iterable[Record], snapshot: Snapshot) -> Plan:
    """The end of an owner that is being deleted: its records go too, but for those that are needed."""
    if not has_finalizer(owner):
        return Plan()
    draft = Draft(snapshot)
    delete_records(draft, records)
    return draft.plan(None, metadata=without_finalizer(owner))


def delete_records(draft: Draft, records: Iterable[Record]) -> None:
    """Delete the records of an owner that is being deleted, but for those that somebody counts on.

    A record whose own policy was set to Retain stays. Where the whole namespace goes, so do they anyway.
    The event has the same words in each pass until one of them is gone.
    """
    snapshot = draft.snapshot
    going, staying = [], []
    for record in () if snapshot.is_namespace_terminating else records:
        reason = _why_it_stays(record, snapshot)
        if reason:
            staying.append(f"{record.name} ({reason})")
            continue
        going.append(record.name)
        if record.metadata.deletion_timestamp is None:
            draft.remove(deletion_target(record), "Background")
    if going or staying:
        draft.event(
            EventReason.RECORDS_DELETED, f"records that go: {_listed(going)}; that stay: {_listed(staying)}"
        )


def versions_of(owner: Owner, snapshot: Snapshot) -> tuple[DatasetVersion, ...]:
    """The DatasetVersions that a Dataset, or a run with inline data, of this name has made."""
    return tuple(snapshot.versions_made_by(version_owner(owner.kind, owner.namespace, owner.name)))


def waits_for_users(record: Record) -> bool:
    """Whether the record is being deleted, and its content is to stay until nobody needs it."""
    state = find(record.status.conditions, ConditionType.RECONCILING)
    is_going = record.metadata.deletion_timestamp is not None
    return is_going and state is not None and state.reason == Reason.IN_USE


def needed_by(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    """Whoever reads the record's content, or is about to: endpoints, and runs that have not ended.

    A claim is another one in another namespace, a bucket is the same: endpoints of all namespaces count, but
    those of other tenants are not named.
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
        and not record.spec.uri.startswith("pvc://")
        and _holds(endpoint, record.spec.digest)
    }
    return tuple(sorted(endpoints | elsewhere | runs))


def _holds(endpoint: InferenceDeployment, digest: str) -> bool:
    """Whether it serves or pins this content. Of one place in a store there may be several spellings, so the
    content alone decides."""
    served = any(model.digest == digest for model in endpoint.status.models)
    pinned = any(model.pin is not None and model.pin.digest == digest for model in endpoint.spec.models)
    return (served or pinned) and endpoint.metadata.deletion_timestamp is None


def _pins(endpoint: InferenceDeployment, checkpoint: str) -> bool:
    pinned = any(
        model.pin is not None and model.pin.checkpoint == checkpoint for model in endpoint.spec.models
    )
    return pinned and endpoint.metadata.deletion_timestamp is None


def readers_of(record: Record, snapshot: Snapshot) -> tuple[str, ...]:
    """Runs that have not ended and have this content from another record, which may be on its way out too."""
    return tuple(
        f"FineTuneJob {job.name}"
        if job.namespace == record.namespace
        else "a FineTuneJob in another namespace"
        for job in snapshot.runs_with(record.spec.digest)
        if job.metadata.deletion_timestamp is None
        and not is_finished(job)
        and (job.namespace == record.namespace or not (job.status.resolved.store or "").startswith("pvc://"))
        and _has_read(job, record)
    )


def _has_read(job: FineTuneJob, record: Record) -> bool:
    if isinstance(record, DatasetVersion):
        return job.status.resolved.dataset_digest == record.spec.digest
    made = any(checkpoint.digest == record.spec.digest for checkpoint in job.status.checkpoints)
    return made or job.status.resolved.parent_digest == record.spec.digest


def _reads(job: FineTuneJob, record: Record) -> bool:
    if isinstance(record, DatasetVersion):
        ref = job.spec.dataset.ref
        return job.status.resolved.dataset_version == record.name or (
            ref is not None and ref.name == record.spec.dataset and ref.version == record.name
        )
    made = any(checkpoint.name == record.name for checkpoint in job.status.checkpoints)
    # A run that has not begun yet begins with nothing that is being deleted, so it holds up no deletion.
    waits = record.metadata.deletion_timestamp is None and job.spec.base_model.checkpoint == record.name
    return made or waits or job.status.resolved.parent_checkpoint == record.name


def _why_it_stays(record: Record, snapshot: Snapshot) -> str:
    if record.spec.deletion_policy != "Delete":
        return f"deletionPolicy: {record.spec.deletion_policy}"
    if isinstance(record, Checkpoint) and record.status.promoted_at is not None and not is_rejected(record):
        return "promoted"
    return ", ".join(f"in use by {user}" for user in needed_by(record, snapshot)[:MAX_NAMES_IN_MESSAGE])


def deletion_target(record: Record) -> Manifest:
    """The record as it was seen, for its deletion."""
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
