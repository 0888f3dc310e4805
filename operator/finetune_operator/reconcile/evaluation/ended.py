# SPDX-License-Identifier: Apache-2.0
"""Evaluations that measure nothing: finished, suspended, or being deleted."""

from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.evaluation.assessment import (
    STAGES_OF_CHECKPOINT,
    Assessment,
    number_of_results,
)
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.records.contentremoval import Removal
from finetune_operator.reconcile.records.evaluationfolders import removal
from finetune_operator.reconcile.records.finalizer import has_finalizer, without_finalizer
from finetune_operator.reconcile.records.folderremoval import is_without_claim, release
from finetune_operator.reconcile.stages.leftovers import clear_leftovers
from finetune_operator.reconcile.stages.stop import stop_all
from finetune_operator.reconcile.steps import Suspended
from finetune_operator.status.conditions import status_manifest
from finetune_operator.status.reasons import Reason


def finished(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    """Delete the children `childrenTTLSeconds` after the end."""
    draft, generation = Draft(snapshot), evaluation.metadata.generation
    requeue_after = clear_leftovers(draft, evaluation.status.conditions, evaluation.spec.children_ttl_seconds)
    status = None
    if evaluation.status.observed_generation != generation:
        # suspend and childrenTTLSeconds can still change; the verdict does not.
        status = status_manifest(evaluation.status.model_copy(update={"observed_generation": generation}))
    return draft.plan(status, requeue_after)


def suspend(run: Assessment) -> Plan:
    """Delete the running Job in the foreground: its pod saves the measured rows in the grace period."""
    message = "suspended: no devices are used; set spec.suspend to false to continue"
    names = (run.job_names(stage).stage for stage in STAGES_OF_CHECKPOINT)
    halt = stop_all(run, names, "the measured rows")
    return run.plan(halt or Suspended(Reason.SUSPENDED, message))


def delete(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    """Remove the pods and, with `deletionPolicy: Delete`, the folders of an Evaluation that is being deleted.

    It is released once its folders are removed, or after a timeout.
    """
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
