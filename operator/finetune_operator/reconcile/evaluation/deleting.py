# SPDX-License-Identifier: Apache-2.0
"""An Evaluation that is being deleted: with `deletionPolicy: Delete`, remove its pods and its folders."""

from finetune_operator.api.evaluationresource import Evaluation
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.evaluation.assessment import number_of_results
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.records.contentremoval import Removal
from finetune_operator.reconcile.records.evaluationfolders import removal
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
    known = (removal(evaluation, evaluation, n) for n in range(number_of_results(evaluation.status) + 1))
    return tuple(each for each in known if each is not None and not is_without_claim(each.store, snapshot))
