# SPDX-License-Identifier: Apache-2.0
"""FineTuneJob: from its spec and the snapshot to a plan.

Every pass walks the same chain from the start. A step with a recorded result lets the chain continue; the
first other step ends the pass. Nothing remembers where the last pass ended.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.plan import Plan
from finetune_operator.reconcile.finetunejob.data import data, evaluated_rows
from finetune_operator.reconcile.finetunejob.deleting import delete
from finetune_operator.reconcile.finetunejob.ended import (
    accept_cancel,
    cancel,
    finished,
    restored,
    suspend,
)
from finetune_operator.reconcile.finetunejob.evaluate import evaluate
from finetune_operator.reconcile.finetunejob.identity import (
    accepts_cancel,
    has_lost_status,
    is_recorded_as_cancelled,
    metadata,
)
from finetune_operator.reconcile.finetunejob.parent import parent
from finetune_operator.reconcile.finetunejob.preflight import preflight
from finetune_operator.reconcile.finetunejob.prerequisites import needs
from finetune_operator.reconcile.finetunejob.promote import promote
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.finetunejob.train import train
from finetune_operator.reconcile.finetunejob.validation import validate
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.steps import Halt
from finetune_operator.status.conditions import is_finished

__all__ = ["needs", "reconcile"]

STEPS: Final[tuple[Callable[[Run], Halt | None], ...]] = (
    validate,
    parent,
    data,
    evaluated_rows,
    preflight,
    train,
    evaluate,
)
"""The chain. A step returns None if its result is recorded, else how the pass ends."""


def reconcile(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    """The plan of one pass over a run."""
    if job.metadata.deletion_timestamp is not None:
        return delete(job, snapshot)
    cancelled = accepts_cancel(job, snapshot.checkpoints)
    plan = accept_cancel(Run(job, snapshot)) if cancelled else _reconcile(job, snapshot)
    recorded = bool(job.status.checkpoints or (plan.status or {}).get("checkpoints"))
    return replace(plan, metadata=metadata(job, recorded=recorded, cancelled=cancelled))


def _reconcile(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    if is_finished(job):
        return finished(job, snapshot)
    run = Run(job, snapshot)
    if is_recorded_as_cancelled(job):
        return cancel(run)
    if has_lost_status(job, snapshot.checkpoints):
        return restored(run)
    if job.spec.suspend:
        return suspend(run)
    return run.plan(_chain(run))


def _chain(run: Run) -> Halt:
    for step in STEPS:
        halt = step(run)
        if halt is not None:
            return halt
    return promote(run)
