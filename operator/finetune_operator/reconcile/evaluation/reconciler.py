# SPDX-License-Identifier: Apache-2.0
"""Evaluation: measure existing Checkpoints on rows of a Dataset, one after the other.

Every pass walks the same chain from the start. A step with a recorded result lets the chain continue; the
first other step ends the pass. The Checkpoints' reconciler takes the scores from the status.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from finetune_operator.api.evaluation_resource import Evaluation
from finetune_operator.plan import Plan
from finetune_operator.reconcile.evaluation.assessment import Assessment
from finetune_operator.reconcile.evaluation.ended import delete, finished, suspend
from finetune_operator.reconcile.evaluation.inputs import inputs, validate
from finetune_operator.reconcile.evaluation.measure import measure
from finetune_operator.reconcile.evaluation.prerequisites import needs
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.records.finalizer import finalizer_update
from finetune_operator.reconcile.steps import Done, Failed, Halt
from finetune_operator.reconcile.verdicts.evaluationresult import verdict_text
from finetune_operator.status.conditions import is_finished
from finetune_operator.status.reasons import Reason

__all__ = ["needs", "reconcile"]

STEPS: Final[tuple[Callable[[Assessment], Halt | None], ...]] = (validate, inputs, measure)
"""The chain. A step returns None if its result is recorded, else how the pass ends."""


def reconcile(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    """The plan of one pass over an Evaluation."""
    if evaluation.metadata.deletion_timestamp is not None:
        return delete(evaluation, snapshot)
    return replace(_reconcile(evaluation, snapshot), metadata=finalizer_update(evaluation))


def _reconcile(evaluation: Evaluation, snapshot: Snapshot) -> Plan:
    if is_finished(evaluation):
        return finished(evaluation, snapshot)
    run = Assessment(evaluation, snapshot)
    if evaluation.spec.suspend:
        return suspend(run)
    return run.plan(_chain(run))


def _chain(run: Assessment) -> Halt:
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
