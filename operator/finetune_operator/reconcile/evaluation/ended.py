# SPDX-License-Identifier: Apache-2.0
"""Evaluations that measure nothing: finished or suspended."""

from finetune_operator.api.evaluationresource import Evaluation
from finetune_operator.plan import Plan
from finetune_operator.reconcile.draft import Draft
from finetune_operator.reconcile.evaluation.assessment import STAGE, Assessment
from finetune_operator.reconcile.inputs.snapshot import Snapshot
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
    halt = stop_all(run, (run.job_names(STAGE).stage,), "the measured rows")
    return run.plan(halt or Suspended(Reason.SUSPENDED, message))
