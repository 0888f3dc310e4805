# SPDX-License-Identifier: Apache-2.0
"""Plan one pass over an Evaluation: measure existing Checkpoints on rows of a Dataset, one after the other.

Every pass walks the same chain from the start. A step with a recorded result lets the chain continue; the
first other step ends the pass. Evaluations that are finished, suspended or being deleted measure nothing. The
Checkpoints' reconciler takes the scores from the status.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.plan import Plan
from finetune_operator.reconcile.evaluation.assessment import (
    STAGES_OF_CHECKPOINT,
    Assessment,
    needs,
    number_of_results,
)
from finetune_operator.reconcile.evaluation.measurement import inputs, measure, validate
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Done, Failed, PassOutcome, PlanBuilder, Suspended
from finetune_operator.reconcile.records.content_removal import (
    Removal,
    finalizer_update,
    has_finalizer,
    is_without_claim,
    release,
    removal,
    without_finalizer,
)
from finetune_operator.reconcile.stages.job_cleanup import delete_finished_children, stop_all
from finetune_operator.reconcile.verdicts import verdict_text
from finetune_operator.status.conditions import is_finished, status_manifest
from finetune_operator.status.reasons import Reason


def clean_up(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    """Delete the children `childrenTTLSeconds` after the end."""
    draft, generation = PlanBuilder(snapshot), evaluation.metadata.generation
    requeue_after = delete_finished_children(
        draft, evaluation.status.conditions, evaluation.spec.children_ttl_seconds
    )
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
    return release(PlanBuilder(snapshot), evaluation, removals)


def _removals(evaluation: Evaluation, snapshot: Snapshot) -> tuple[Removal, ...]:
    """The folders of the Checkpoints that were measured, and of the current one."""
    known = (removal(evaluation, evaluation, n) for n in range(number_of_results(evaluation.status) + 1))
    return tuple(each for each in known if each is not None and not is_without_claim(each.store, snapshot))


__all__ = ["needs", "reconcile"]

STEPS: Final[tuple[Callable[[Assessment], PassOutcome | None], ...]] = (validate, inputs, measure)
"""The chain. A step returns None if its result is recorded, else how the pass ends."""


def reconcile(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    """The plan of one pass over an Evaluation."""
    if evaluation.metadata.deletion_timestamp is not None:
        return delete(evaluation, snapshot)
    return replace(_reconcile(evaluation, snapshot), metadata=finalizer_update(evaluation))


def _reconcile(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    if is_finished(evaluation):
        return clean_up(evaluation, snapshot)
    run = Assessment(evaluation, snapshot)
    if evaluation.spec.suspend:
        return suspend(run)
    return run.plan(_chain(run))


def _chain(run: Assessment) -> PassOutcome:
    for step in STEPS:
        halt = step(run)
        if halt is not None:
            return halt
    return _end(run)


def _end(run: Assessment) -> Done | Failed:
    """The verdict: that of the first Checkpoint without scores, else the worst of all."""
    results, failures = run.status.evaluations, run.status.unmeasured
    if failures:
        unmeasured = [f"Checkpoint {each.checkpoint}: {each.message}" for each in failures]
        missed_gates = [
            f"{each.checkpoint}: {verdict_text(each)}"
            for each in results
            if each.verdict in {"Failed", "Undecided"}
        ]
        return Failed(failures[0].reason, ". ".join((*unmeasured, *missed_gates)))
    for verdict, reason in (("Failed", Reason.GATE_FAILED), ("Undecided", Reason.EVALUATION_UNDECIDED)):
        missed = [each for each in results if each.verdict == verdict]
        vetoed = any(each.reason == Reason.VETOED for each in missed)
        if missed:
            message = ". ".join(f"{each.checkpoint}: {verdict_text(each)}" for each in missed)
            return Failed(Reason.VETOED if vetoed else reason, message)
    gates = "all gates passed" if run.evaluation.spec.gates else "no gates"
    return Done(
        Reason.SUCCEEDED,
        f"{len(results)} Checkpoint{'s' if len(results) > 1 else ''} measured on DatasetVersion"
        f" {run.status.resolved.dataset_version}: {gates}",
    )
