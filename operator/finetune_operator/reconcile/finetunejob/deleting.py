# SPDX-License-Identifier: Apache-2.0
"""A run that is being deleted: with `deletionPolicy: Delete`, remove its pods, its folder and its records."""

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.manifests.volumes import run_folder
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.finetunejob.identity import records
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.records.contentremoval import Removal
from finetune_operator.reconcile.records.finalizer import has_finalizer
from finetune_operator.reconcile.records.folderremoval import is_without_claim, release
from finetune_operator.reconcile.records.ownership import delete_records, delete_with


def delete(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    """One pass. It deletes the records first, and the run once its folder is removed or after a timeout."""
    store = job.status.resolved.store
    is_simple = not has_finalizer(job) or snapshot.is_namespace_terminating
    if store is None or is_simple or is_without_claim(store, snapshot):
        return delete_with(job, records(job, snapshot), snapshot)
    draft = Draft(snapshot)
    delete_records(draft, records(job, snapshot))
    return release(draft, job, [_removal(job, store)])


def _removal(job: FineTuneJob, store: str) -> Removal:
    return Removal(
        owner=job,
        store=store,
        secret=job.status.resolved.store_credentials,
        folder=run_folder(store, job.uid),
        artifact=None,
        advice="to delete the run without its folder, remove its finalizer finetune.dev/cleanup",
    )
