# SPDX-License-Identifier: Apache-2.0
"""The end of a record that is being deleted. With `deletionPolicy: Delete` its content is removed first.

The finalizer is removed when the content is gone or will stay. The content stays if another record has the
same content, the policy is now Retain, the namespace is being deleted, or a day has passed.
"""

from datetime import datetime, timedelta
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.labels import OWNER_KIND
from finetune_operator.manifests.labels import STORE, STORE_CREDENTIALS
from finetune_operator.manifests.volumes import parse_store, store_folder
from finetune_operator.manifests.weights import WeightsReference
from finetune_operator.plan import Event, Plan
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Blocked, PlanBuilder, Working, finish_pass
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.records.content_removal import (
    REMOVAL_TIMEOUT,
    Record,
    Removal,
    has_finalizer,
    removals_of,
    remove,
    without_finalizer,
)
from finetune_operator.reconcile.records.retention import find_users, readers_of
from finetune_operator.reconcile.records.source_check_schedule import until_check
from finetune_operator.status import conditions
from finetune_operator.status.conditions import is_finished, is_settled
from finetune_operator.status.reasons import EventReason, Reason
from finetune_trainer.contract.references import ArtifactRef

RECHECK_SECONDS: Final = 60.0
"""Interval of re-checks; not every change of a user of the content triggers a pass."""
MAX_NAMES_IN_MESSAGE: Final = 4


def needs(record: Record, _: Snapshot) -> Needs:
    """The claims that a cleanup Job will mount; no other pod mounts any for a record."""
    is_terminating = record.metadata.deletion_timestamp is not None
    return storage.claims_of(*_stores(record)) if is_terminating and has_finalizer(record) else NOTHING


def finalize(record: Record, snapshot: Snapshot) -> Plan:
    """One pass over a record that is being deleted."""
    if not has_finalizer(record):
        return Plan()
    stores = tuple(store for store in _stores(record) if not _sharers(store, record, snapshot))
    stays = _why_it_stays(record, stores, snapshot)
    if stays is not None:
        return Plan(events=(stays,), metadata=without_finalizer(record))
    users = sorted({*find_users(record, snapshot), *readers_of(record, snapshot)})
    if users:
        message = f"{_folders(record, stores)} is removed when {', '.join(users)} no longer needs it"
        return _wait(
            record, snapshot, PlanBuilder(snapshot), Blocked(Reason.IN_USE, message, RECHECK_SECONDS)
        )
    if _is_partly_unseen(stores, snapshot):
        message = (
            f"{_folders(record, stores)} is removed when the operator can list every namespace that it"
            " watches, because records there may have the same content; its log names the namespaces that it"
            " is not allowed to list"
        )
        return _wait(
            record, snapshot, PlanBuilder(snapshot), Blocked(Reason.FORBIDDEN, message, RECHECK_SECONDS)
        )
    draft = PlanBuilder(snapshot)
    derived = removals_of(record, snapshot) if isinstance(record, Checkpoint) else ()
    removals = (*(_removal(record, store) for store in stores), *derived)
    halts = [halt for removal in removals if (halt := remove(draft, removal)) is not None]
    if halts:
        return _wait(record, snapshot, draft, halts[0])
    draft.event(EventReason.CONTENT_REMOVED, f"{_folders(record, stores)} is removed")
    return draft.plan(None, metadata=without_finalizer(record))


def _why_it_stays(record: Record, stores: tuple[str, ...], snapshot: Snapshot) -> Event | None:
    folders = _folders(record, _stores(record))
    if record.spec.deletion_policy != "Delete":
        return _kept(f"{folders} stays: deletionPolicy is {record.spec.deletion_policy}")
    if snapshot.is_namespace_terminating:
        return _kept(f"{folders} stays: namespace {record.namespace} is being deleted")
    maker = _name_of_maker(record, snapshot)
    if maker:
        return _kept(f"{folders} stays: {maker} is being prepared and may produce the same rows")
    if not stores:
        sharers = sorted({name for store in _stores(record) for name in _sharers(store, record, snapshot)})
        others = " and ".join(sharers[:MAX_NAMES_IN_MESSAGE])
        return _kept(f"{folders} stays: {f'{others} needs it too' if others else 'no store is known'}")
    if snapshot.now >= _deadline(record):
        return Event(
            "Warning",
            EventReason.CONTENT_KEPT,
            f"{folders} stays: it could not be removed within {REMOVAL_TIMEOUT // timedelta(hours=1)} hours;"
            " remove it by hand",
        )
    return None


def _name_of_maker(record: Record, snapshot: Snapshot) -> str:
    """The Dataset or run that is preparing rows which may be the rows of this record; empty if there is none.

    It would find the rows in the store, and can record them only after this record, which has the same name,
    is gone. So the rows must stay, and the record must not wait.
    """
    if isinstance(record, Checkpoint):
        return ""
    maker: Dataset | FineTuneJob | None
    if record.metadata.labels.get(OWNER_KIND) == FineTuneJob.__name__:
        maker = snapshot.finetunejobs.get(record.spec.dataset)
        is_made = maker is None or is_finished(maker) or maker.status.resolved.dataset_version is not None
    else:
        maker = snapshot.datasets.get(record.spec.dataset)
        is_made = maker is None or (is_settled(maker) and until_check(maker, snapshot.now) != 0)
    if maker is None or is_made or maker.metadata.deletion_timestamp is not None:
        return ""
    return f"{maker.kind} {maker.name}"


def _kept(message: str) -> Event:
    return Event("Normal", EventReason.CONTENT_KEPT, conditions.shorten(message))


def _deadline(record: Record) -> datetime:
    deleted_at = record.metadata.deletion_timestamp
    if deleted_at is None:
        raise ValueError(f"{record.kind} {record.name} is not being deleted")
    return deleted_at + REMOVAL_TIMEOUT


def _stores(record: Record) -> tuple[str, ...]:
    """Uris of the stores that have the record's content."""
    if isinstance(record, Checkpoint):
        known: tuple[str, ...] = (WeightsReference.of(record).store,)
    else:
        known = record.status.locations or (record.metadata.annotations.get(STORE, ""),)
    return tuple(filter(_is_store, known))


def _is_store(store: str) -> bool:
    try:
        parse_store(store)
    except ValueError:
        return False
    return True


def _sharers(store: str, record: Record, snapshot: Snapshot) -> list[str]:
    """Other records of the same folder that are not being deleted; other namespaces are not named."""
    return [
        other.name if other.namespace == record.namespace else "a record in another namespace"
        for other in snapshot.same_content
        if other.metadata.deletion_timestamp is None
        and store in _stores(other)
        and storage.is_same_place(store, other.namespace, record.namespace)
    ]


def _is_partly_unseen(stores: tuple[str, ...], snapshot: Snapshot) -> bool:
    """Whether namespaces that the operator cannot list may have records in one of these stores too."""
    return bool(snapshot.facts.unlisted) and not all(map(storage.is_claim, stores))


def _artifact(record: Record) -> ArtifactRef:
    return ArtifactRef(
        kind="checkpoints" if isinstance(record, Checkpoint) else "datasets", digest=record.spec.digest
    )


def _folders(record: Record, stores: tuple[str, ...]) -> str:
    artifact = _artifact(record)
    return (
        " and ".join(store_folder(store, artifact.kind, artifact.digest) for store in stores) or "its content"
    )


def _wait(record: Record, snapshot: Snapshot, draft: PlanBuilder, halt: Working | Blocked) -> Plan:
    left = max(1.0, (_deadline(record) - snapshot.now).total_seconds())
    result = finish_pass(record, record.status, halt, snapshot.now)
    draft.events += result.events
    return draft.plan(result.manifest, min(result.requeue_after or left, left))


def _removal(record: Record, store: str) -> Removal:
    """The removal of the content from one store."""
    return Removal(
        owner=record,
        store=store,
        secret=record.metadata.annotations.get(STORE_CREDENTIALS),
        folder=_folders(record, (store,)),
        artifact=_artifact(record),
        advice="to delete the record and keep the folder, set its spec.deletionPolicy to Retain",
    )
