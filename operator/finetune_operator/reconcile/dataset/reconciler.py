# SPDX-License-Identifier: Apache-2.0
"""Dataset: the first preparation of a generation, refreshes of one that is Ready, the choice between them.

Dataset: prepare each generation once, re-check the source when that is due, and record new rows as a
DatasetVersion.

Each check of the source is a prepare Job; `status.refresh.checks` counts the finished checks. The first one
decides whether the Dataset becomes Ready. A later one that fails sets the condition Refreshed to False, and
the Dataset stays Ready.
"""

from dataclasses import replace

from finetune_operator.api.compute import NO_CHOICE
from finetune_operator.api.dataset import Dataset
from finetune_operator.api.references import StoreReference
from finetune_operator.plan import Plan
from finetune_operator.reconcile.dataset.preparation import prepare, refresh
from finetune_operator.reconcile.dataset.source_check import PREPARE, delete_old_jobs, profile_of
from finetune_operator.reconcile.inputs.related_types import NOTHING, Needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.pass_outcome import Blocked
from finetune_operator.reconcile.plan_builder import PlanBuilder
from finetune_operator.reconcile.platform import profiles, queues, storage
from finetune_operator.reconcile.records.content_removal import finalizer_update
from finetune_operator.reconcile.records.retention import delete_records_and_release, versions_of
from finetune_operator.reconcile.records.source_check_schedule import is_check_requested, until_check
from finetune_operator.reconcile.stages.jobs import is_stage_running
from finetune_operator.status.conditions import is_prepared, is_settled, status_manifest

__all__ = ["needs", "reconcile"]


def needs(dataset: Dataset, snapshot: Snapshot) -> Needs:
    """Claims and queues to look up: none while a check of the source runs, or while none is due.

    Until then, also the namespace, if its labels decide about the default profile.
    """
    if is_settled(dataset) and until_check(dataset, snapshot.now) != 0:
        return NOTHING
    labels = profiles.label_needs((None,), dataset.namespace, snapshot)
    if is_stage_running(snapshot):
        return labels
    profile = profile_of(dataset, snapshot, profiles.named_profile)
    store: StoreReference | Blocked | None = None
    if not isinstance(profile, Blocked):
        store = profiles.resolve_store(dataset.spec.store, profile, dataset.namespace)
    store_uri = store.uri if isinstance(store, StoreReference) else None
    claims = storage.claims_of(store_uri, *(source.uri for source in dataset.spec.sources))
    queued = queues.queue_needs(queues.queues_of(profile, (PREPARE,), NO_CHOICE))
    return queues.merge_needs(claims, labels, queued)


def reconcile(dataset: Dataset, snapshot: Snapshot) -> Plan:
    """The plan of one pass over a Dataset."""
    if dataset.metadata.deletion_timestamp is not None:
        return delete_records_and_release(dataset, versions_of(dataset, snapshot), snapshot)
    current = _without_deleted_versions(dataset, snapshot)
    plan = _reconcile(current, snapshot)
    if plan.status is None and current.status != dataset.status:
        plan = replace(plan, status=status_manifest(current.status))
    return replace(plan, metadata=finalizer_update(dataset))


def _without_deleted_versions(dataset: Dataset, snapshot: Snapshot) -> Dataset:
    """The Dataset with the versions in its status that still exist."""
    existing = tuple(each for each in dataset.status.versions if each.name in snapshot.datasetversions)
    if len(existing) == len(dataset.status.versions):
        return dataset
    return dataset.model_copy(update={"status": dataset.status.model_copy(update={"versions": existing})})


def _reconcile(dataset: Dataset, snapshot: Snapshot) -> Plan:
    draft = PlanBuilder(snapshot)
    later = delete_old_jobs(dataset, draft)
    if is_prepared(dataset):
        return refresh(dataset, draft, later)
    if is_settled(dataset) and not is_check_requested(dataset):
        return draft.plan(None, later)
    return prepare(dataset, draft, later)
