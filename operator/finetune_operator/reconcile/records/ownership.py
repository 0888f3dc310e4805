"""What goes with an object that has `deletionPolicy: Delete`, and the finalizer that waits for it."""

from collections.abc import Iterable
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.datasetversion import DatasetVersion
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.indexes import version_owner
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.checkpoints import is_rejected
from finetune_operator.reconcile.records.finalizer import Owner, Record, has_finalizer, without_finalizer
from finetune_operator.reconcile.records.users import needed_by
from finetune_operator.status.reasons import EventReason

MAX_NAMES_IN_MESSAGE: Final = 8


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
