# SPDX-License-Identifier: Apache-2.0
"""Records that are deleted together with the Dataset or run that made them."""

from collections.abc import Iterable
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset_version import DatasetVersion
from finetune_operator.plan import Manifest, Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.inputs.indexes import version_owner
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.checkpointrules import is_rejected
from finetune_operator.reconcile.records.finalizer import Owner, Record, has_finalizer, without_finalizer
from finetune_operator.reconcile.records.users import needed_by
from finetune_operator.status.reasons import EventReason

MAX_NAMES_IN_MESSAGE: Final = 8


def delete_with(owner: Owner, records: Iterable[Record], snapshot: Snapshot) -> Plan:
    """Delete the records of an owner that is being deleted, except needed ones, and release the owner."""
    if not has_finalizer(owner):
        return Plan()
    draft = Draft(snapshot)
    delete_records(draft, records)
    return draft.plan(None, metadata=without_finalizer(owner))


def delete_records(draft: Draft, records: Iterable[Record]) -> None:
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
    return ", ".join(f"in use by {user}" for user in needed_by(record, snapshot)[:MAX_NAMES_IN_MESSAGE])


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
