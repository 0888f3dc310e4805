# SPDX-License-Identifier: Apache-2.0
"""How a run ends: promoted, waiting for approval, or below its gates."""

from typing import Final

from finetune_operator.api.evaluation import EvaluationStatus
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.lines.checkpointrules import is_rejected
from finetune_operator.reconcile.lines.promotion import verdict
from finetune_operator.reconcile.steps import Done, Failed, Halt, Working
from finetune_operator.status.reasons import Reason

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


def promote(run: Run) -> Halt:
    """The end of the run. The Checkpoint's reconciler writes `promotedAt`, and the run waits for it."""
    evaluation = run.status.evaluation
    decision = verdict(run.job, evaluation, run.snapshot.checkpoints.champion_name(run.job.spec.model_line))
    if evaluation is None:
        return Working(decision.reason, decision.message)
    end = ENDS.get(decision.reason)
    if end is not None:
        message = f"Checkpoint {evaluation.checkpoint} is not promoted: {decision.message}"
        return end(decision.reason, message)
    return _wait(run, evaluation, is_outdated=decision.reason == Reason.PROMOTING)


def _wait(run: Run, evaluation: EvaluationStatus, *, is_outdated: bool) -> Halt:
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
