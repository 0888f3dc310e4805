"""How a run ends: promoted, waiting for a person's word, or below its bar."""

from finetune_operator.api.finetunejobstatus import EvaluationStatus
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.lines import champion_name, is_rejected
from finetune_operator.reconcile.steps import Done, Failed, Halt, Working
from finetune_operator.status.reasons import Reason


def promote(run: Run) -> Halt:
    """The end of the run. The Checkpoint's own reconcile writes `promotedAt`; the run waits for it."""
    evaluation = run.status.evaluation
    if evaluation is None:
        return Working(Reason.EVALUATING, "waiting for the evaluation")
    said = "; ".join(gate.message for gate in evaluation.gates)
    name, model = evaluation.checkpoint, run.job.spec.model
    if evaluation.verdict == "Failed":
        return Failed(Reason.GATE_FAILED, f"Checkpoint {name} is not promoted: {said}")
    if evaluation.verdict == "Undecided":
        return Failed(Reason.EVALUATION_UNDECIDED, f"Checkpoint {name} is not promoted: {said}")
    promotion = run.job.spec.promotion
    if promotion.mode == "Manual":
        return Done(
            Reason.AWAITING_APPROVAL,
            f"Checkpoint {name} awaits approval: set its spec.approval.state to Approved to promote it",
        )
    if evaluation.verdict == "NoGates" and not promotion.without_evaluation:
        return Done(
            Reason.NOT_PROMOTED,
            f"Checkpoint {name} is not promoted because there are no gates: add evaluation.gates or"
            " promotion.withoutEvaluation to the next run, or approve this Checkpoint",
        )
    return _wait(run, evaluation, model)


def _wait(run: Run, evaluation: EvaluationStatus, model: str) -> Halt:
    name = evaluation.checkpoint
    checkpoint = run.snapshot.checkpoints.get(name)
    if checkpoint is not None and checkpoint.status.promoted_at is not None:
        return Done(Reason.PROMOTED, f"Checkpoint {name} is promoted in model line {model}")
    if checkpoint is not None and is_rejected(checkpoint):
        return Done(Reason.REJECTED, f"Checkpoint {name} was rejected by hand: it is not promoted")
    champion = champion_name(run.snapshot.checkpoints, model)
    if champion != evaluation.champion:
        # The verdict holds against the new champion too, because no score of this release depends on it.
        run.update(evaluation=evaluation.model_copy(update={"champion": champion}))
    return Working(
        Reason.PROMOTING,
        f"waiting for Checkpoint {name} to be promoted; if somebody deleted it, make a new FineTuneJob",
    )
