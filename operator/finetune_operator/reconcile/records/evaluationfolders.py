# SPDX-License-Identifier: Apache-2.0
"""Folders in stores with the results of Evaluations: answers, values of rows and pages."""

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.manifests.volumes import run_folder
from finetune_operator.reconcile.inputs.indexes import address
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.lines.scores import is_resolved
from finetune_operator.reconcile.records.contentremoval import Removal


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
