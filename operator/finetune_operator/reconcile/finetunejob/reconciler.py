# SPDX-License-Identifier: Apache-2.0
"""Plan one pass over a FineTuneJob: the chain from validation through the stages to promotion.

Every pass walks the same chain from the start. A step with a recorded result lets the chain continue; the
first other step ends the pass. Nothing remembers where the last pass ended. A run ends promoted, waiting for
approval, or below its gates.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.meta import find_unimplemented
from finetune_operator.api.training import invalid_arguments
from finetune_operator.plan import Plan
from finetune_operator.reconcile.finetunejob.evaluation import evaluate, find_feature_refusal
from finetune_operator.reconcile.finetunejob.identity import (
    accepts_cancel,
    has_lost_status,
    is_recorded_as_cancelled,
    metadata,
)
from finetune_operator.reconcile.finetunejob.inactive_runs import (
    accept_cancel,
    cancel,
    clean_up,
    delete,
    restore,
    suspend,
)
from finetune_operator.reconcile.finetunejob.inputs import data, evaluated_rows, parent
from finetune_operator.reconcile.finetunejob.preflight import preflight
from finetune_operator.reconcile.finetunejob.run import RunPass, inputs_of, needs
from finetune_operator.reconcile.finetunejob.train import train
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.model_lines import is_rejected
from finetune_operator.reconcile.passes import Blocked, Done, Failed, PassOutcome, Working
from finetune_operator.reconcile.platform import storage
from finetune_operator.reconcile.promotion import decide_end_of_run
from finetune_operator.status.conditions import is_finished
from finetune_operator.status.reasons import Reason


def validate(run: RunPass) -> Failed | Blocked | None:
    """Report everything that is wrong at once, and not only when the stage that needs it is due."""
    if run.status.resolved.store is not None:
        return None
    refused = _refused(run)
    if refused is not None:
        return refused
    found = run.prerequisites
    if isinstance(found, Blocked):
        return found
    unusable = _unusable(found.profile, found.evaluate_profile)
    return unusable or find_feature_refusal(run, found)


def _refused(run: RunPass) -> Failed | None:
    """Fields that this release does not implement, and values that the API server cannot check."""
    spec = run.job.spec
    messages = find_unimplemented(spec)
    if messages:
        return Failed(Reason.NOT_IMPLEMENTED, "; ".join(messages))
    for field, uri, _ in inputs_of(run.job):
        wrong = storage.check_source(uri, field)
        if wrong is not None:
            return wrong
    wrong_form = storage.check_form(spec.store)
    if wrong_form is not None:
        return wrong_form
    invalid = invalid_arguments(spec.chat_template_kwargs or {}, "spec.chatTemplateKwargs")
    return None if invalid is None else Failed(Reason.INVALID_SPEC, invalid)


def _unusable(*profiles: ComputeProfile) -> Blocked | None:
    """A profile with fields that this release does not implement; it does not stop a run that has begun."""
    for profile in profiles:
        messages = find_unimplemented(profile.spec)
        if messages:
            return Blocked(
                Reason.PROFILE_INVALID,
                f"ComputeProfile {profile.name} cannot be used. {'; '.join(messages)}",
                requeue_after=None,
            )
    return None


ENDS: Final[dict[str, type[Done | Failed]]] = {
    Reason.GATE_FAILED: Failed,
    Reason.EVALUATION_UNDECIDED: Failed,
    Reason.VETOED: Failed,
    Reason.CHAMPION_KEEPS_CHANGING: Failed,
    Reason.AWAITING_APPROVAL: Done,
    Reason.NOT_PROMOTED: Done,
    Reason.PROMOTION_DISABLED: Done,
}
"""How a run ends if its Checkpoint is not promoted."""


def promote(run: RunPass) -> PassOutcome:
    """The end of the run. The Checkpoint's reconciler writes `promotedAt`, and the run waits for it."""
    evaluation = run.status.evaluation
    decision = decide_end_of_run(
        run.job, evaluation, run.snapshot.checkpoints.champion_name(run.job.spec.model_line)
    )
    if evaluation is None:
        return Working(decision.reason, decision.message)
    end = ENDS.get(decision.reason)
    if end is not None:
        message = f"Checkpoint {evaluation.checkpoint} is not promoted: {decision.message}"
        return end(decision.reason, message)
    return _wait(run, evaluation, is_outdated=decision.reason == Reason.PROMOTING)


def _wait(run: RunPass, evaluation: EvaluationStatus, *, is_outdated: bool) -> PassOutcome:
    name, line = evaluation.checkpoint, run.job.spec.model_line
    checkpoint = run.snapshot.checkpoints.get(name)
    if checkpoint is not None and checkpoint.status.promoted_at is not None:
        return Done(Reason.PROMOTED, f"Checkpoint {name} is promoted in model line {line}")
    if checkpoint is not None and is_rejected(checkpoint):
        return Done(Reason.REJECTED, f"Checkpoint {name} was rejected by a person: it is not promoted")
    if is_outdated:
        # The verdict also holds against the new champion, because no gate of the run compares with it: the
        # step `evaluate` renews a verdict that does.
        champion = run.snapshot.checkpoints.champion_name(line)
        run.update(evaluation=evaluation.model_copy(update={"champion": champion}))
    return Working(
        Reason.PROMOTING,
        f"waiting for Checkpoint {name} to be promoted; if it was deleted, create a new FineTuneJob",
    )


__all__ = ["needs", "reconcile"]

STEPS: Final[tuple[Callable[[RunPass], PassOutcome | None], ...]] = (
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
    plan = accept_cancel(RunPass(job, snapshot)) if cancelled else _reconcile(job, snapshot)
    recorded = bool(job.status.checkpoints or (plan.status or {}).get("checkpoints"))
    return replace(plan, metadata=metadata(job, recorded=recorded, cancelled=cancelled))


def _reconcile(job: FineTuneJob, snapshot: Snapshot) -> Plan:
    if is_finished(job):
        return clean_up(job, snapshot)
    run = RunPass(job, snapshot)
    if is_recorded_as_cancelled(job):
        return cancel(run)
    if has_lost_status(job, snapshot.checkpoints):
        return restore(run)
    if job.spec.suspend:
        return suspend(run)
    return run.plan(_chain(run))


def _chain(run: RunPass) -> PassOutcome:
    for step in STEPS:
        halt = step(run)
        if halt is not None:
            return halt
    return promote(run)
