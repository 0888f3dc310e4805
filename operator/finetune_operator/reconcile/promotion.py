# SPDX-License-Identifier: Apache-2.0
"""The rule that promotes a Checkpoint of a model line.

A run ends with `decide_end_of_run`. The Checkpoint's reconciler, which alone writes `promotedAt`
(decision 3), uses `decide_promotion`, which also considers the approval or rejection by a person.
"""

from dataclasses import dataclass
from typing import Final

from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.reconcile.model_lines import (
    CheckpointIndex,
    is_approved,
    is_older,
    is_rejected,
    never_promoted,
)
from finetune_operator.reconcile.verdicts import find_vetoes, verdict_text
from finetune_operator.status.conditions import find_condition, is_cancelled, is_finished
from finetune_operator.status.reasons import ConditionType, Reason

READ: Final = ". Read the worst answers (status.evaluation.reportUri of the run). "
APPROVE: Final = "To promote it anyway, set spec.approval.state of the Checkpoint to Approved; to"
TRY_AGAIN: Final = " try again, create a FineTuneJob with another name"


@dataclass(frozen=True, slots=True)
class Decision:
    """The promotion decision on a Checkpoint; its reason is `Promoted` if the Checkpoint is promoted."""

    reason: Reason
    message: str
    """About the Checkpoint, without its name."""


def decide_promotion(checkpoint: Checkpoint, job: FineTuneJob | None, index: CheckpointIndex) -> Decision:
    """Decide whether the Checkpoint is promoted. `job` is the run that made it, None if it no longer exists.

    A rejection has priority and also withdraws a promotion. A promotion that is not withdrawn stays. Nothing
    promotes a Checkpoint of a run with `promotion.mode: Never`, also after the run is gone. In other cases
    the run decides; if the run does not promote, an approval does.
    """
    line, approval = checkpoint.spec.model_line, checkpoint.spec.approval
    if approval is not None and is_rejected(checkpoint):
        return Decision(Reason.REJECTED, f"rejected: {approval.reason or 'no reason given'}")
    if checkpoint.status.promoted_at is not None:
        # The condition keeps the reason for the promotion.
        known = find_condition(checkpoint.status.conditions, ConditionType.PROMOTED)
        if known is not None and known.reason == Reason.PROMOTED:
            return Decision(Reason.PROMOTED, known.message)
        return Decision(Reason.PROMOTED, f"promoted in model line {line}")
    if never_promoted(checkpoint):
        return Decision(
            Reason.PROMOTION_DISABLED,
            f"promotion.mode of FineTuneJob {checkpoint.spec.lineage.job.name} is Never, so an approval does"
            " not promote it either: to serve it, pin it in an InferenceDeployment; to promote such a"
            " Checkpoint, create a FineTuneJob with another promotion.mode",
        )
    decision = _by_run(checkpoint, job, index.champion_name(line))
    # If the run promotes, or will, the approval changes nothing.
    if is_approved(checkpoint) and decision.reason not in {Reason.PROMOTED, Reason.PROMOTING}:
        return _by_approval(checkpoint, index.champion(line))
    return decision


def decide_end_of_run(
    job: FineTuneJob, evaluation: EvaluationStatus | None, current_champion: str | None
) -> Decision:
    """The decision of a run on the Checkpoint that it evaluated, by its evaluation and `spec.promotion`.

    `current_champion` is the name of the line's champion. If the evaluation names another one, the reason is
    `Promoting`.
    """
    if evaluation is None:
        if is_finished(job):
            message = f"FineTuneJob {job.name} ended without an evaluation: approve it by hand"
            return Decision(Reason.NOT_PROMOTED, message)
        return Decision(Reason.EVALUATING, f"FineTuneJob {job.name} has not evaluated it yet")
    gates, mode = "; ".join(gate.message for gate in evaluation.gates), job.spec.promotion.mode
    next_step = f"{READ}To{TRY_AGAIN}" if mode == "Never" else f"{READ}{APPROVE}{TRY_AGAIN}"
    if find_vetoes(evaluation):
        return Decision(Reason.VETOED, verdict_text(evaluation))
    if evaluation.verdict == "Failed":
        return Decision(Reason.GATE_FAILED, f"{gates}{next_step}")
    if evaluation.reason == Reason.CHAMPION_KEEPS_CHANGING:
        approve = "" if mode == "Never" else " set spec.approval of the Checkpoint to promote it, or"
        message = (
            "the champion of the model line changed each time that the run had been compared with it:"
            f"{approve} create a new FineTuneJob. {gates}"
        )
        return Decision(Reason.CHAMPION_KEEPS_CHANGING, message)
    if evaluation.verdict not in {"Passed", "NoGates"}:
        # A verdict that only a newer release knows promotes nothing either.
        return Decision(Reason.EVALUATION_UNDECIDED, f"{gates}{next_step}")
    if mode == "Never":
        message = f"promotion.mode is Never, which an approval does not change: {gates or 'no gates'}"
        return Decision(Reason.PROMOTION_DISABLED, message)
    if mode == "Manual":
        message = "set spec.approval.state of the Checkpoint to Approved to promote it"
        return Decision(Reason.AWAITING_APPROVAL, message)
    if evaluation.verdict == "NoGates" and mode != "Always":
        return Decision(
            Reason.NOT_PROMOTED,
            "the run has no gates: set spec.approval.state of the Checkpoint to Approved to promote it, or"
            " add evaluation.gates or promotion.mode: Always to the next run",
        )
    if evaluation.champion != current_champion:
        if is_finished(job):
            message = f"the champion has changed since FineTuneJob {job.name} ended: approve it by hand"
            return Decision(Reason.NOT_PROMOTED, message)
        against = current_champion or "none"
        return Decision(Reason.PROMOTING, f"to be compared with the current champion first: {against}")
    return Decision(
        Reason.PROMOTED, f"promoted in model line {job.spec.model_line}: {gates or 'without evaluation'}"
    )


def _by_run(checkpoint: Checkpoint, job: FineTuneJob | None, current_champion: str | None) -> Decision:
    if job is None:
        gone = checkpoint.spec.lineage.job.name
        message = f"its FineTuneJob {gone} does not exist: set spec.approval to promote it"
        return Decision(Reason.NOT_PROMOTED, message)
    evaluation = job.status.evaluation
    if evaluation is not None and evaluation.checkpoint != checkpoint.name:
        message = f"the run evaluated its better checkpoint {evaluation.checkpoint}"
        return Decision(Reason.NOT_PROMOTED, message)
    if evaluation is not None and is_cancelled(job):
        message = f"FineTuneJob {job.name} was cancelled: set spec.approval of the Checkpoint to promote it"
        return Decision(Reason.NOT_PROMOTED, message)
    return decide_end_of_run(job, evaluation, current_champion)


def _by_approval(checkpoint: Checkpoint, best: Checkpoint | None) -> Decision:
    line = checkpoint.spec.model_line
    if best is None or not is_older(checkpoint, best):
        return Decision(Reason.PROMOTED, f"approved, and promoted in model line {line}")
    return Decision(
        Reason.NOT_PROMOTED,
        f"approved, but {best.name}, which is newer, is the champion of {line}: to serve this one, pin it in"
        " an InferenceDeployment",
    )
