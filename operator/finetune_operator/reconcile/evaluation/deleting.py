"""An Evaluation that is being deleted: with `deletionPolicy: Delete`, remove its pods and its folders."""

from finetune_operator.api.evaluationresource import Evaluation
from finetune_operator.manifests.locations import run_folder
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.evaluation.assessment import folder_name, number_of_results
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.records.contentremoval import Removal
from finetune_operator.reconcile.records.finalizer import has_finalizer, without_finalizer
from finetune_operator.reconcile.records.folderremoval import is_without_claim, release


def delete(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    """One pass. The Evaluation is released once its folders are removed, or after a timeout."""
    if not has_finalizer(evaluation):
        return Plan()
    removals = () if snapshot.is_namespace_terminating else _removals(evaluation, snapshot)
    if not removals:
        return Plan(metadata=without_finalizer(evaluation))
    return release(Draft(snapshot), evaluation, removals)


def _removals(evaluation: Evaluation, snapshot: Snapshot) -> tuple[Removal, ...]:
    """The folders of the Checkpoints that were measured, and of the current one."""
    stores = evaluation.status.resolved.stores or ()
    return tuple(
        Removal(
            owner=evaluation,
            store=store.uri,
            secret=store.credentials,
            folder=run_folder(store.uri, folder_name(evaluation, number)),
            artifact=None,
            run=folder_name(evaluation, number),
            advice="to delete the Evaluation without its folders, remove its finalizer finetune.dev/cleanup",
        )
        for number, store in enumerate(stores[: number_of_results(evaluation.status) + 1])
        if not is_without_claim(store.uri, snapshot)
    )
