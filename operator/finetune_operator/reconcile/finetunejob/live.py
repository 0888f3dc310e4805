# SPDX-License-Identifier: Apache-2.0
"""The champion that an evaluation compares with, and the renewal of the comparison when it changes.

The champion is recorded in the status before the Job that measures it is created. A Job of another champion
therefore never runs next to it, and the comparison of a verdict is always known.
"""

from typing import Final

from finetune_operator.api.evaluation import (
    ComparedChampion,
    EvaluationSettings,
    EvaluationStatus,
    LiveComparison,
)
from finetune_operator.manifests.configs import is_over_live
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.measuring import champion_of, has_begun, rival_of
from finetune_operator.reconcile.stages.usage import reopen
from finetune_operator.reconcile.steps import Working
from finetune_operator.reconcile.verdicts.evaluationresult import vetoes_of
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.vocabulary import Stage

MAX_RENEWALS: Final = 3


def decides(spec: EvaluationSettings, evaluation: EvaluationStatus) -> bool:
    """Whether the verdict depends on the champion: a gate compares with it, and nothing else has failed."""
    if not any(is_over_live(spec, gate) for gate in spec.gates) or vetoes_of(evaluation):
        return False
    return not any(gate.verdict == "Failed" and gate.over != "Live" for gate in evaluation.gates)


def choose(run: Run, stage: Stage, evaluated: str) -> Working | None:
    """Record the champion to compare with; None once it is recorded.

    Before the stage has a Job, a newer champion replaces it. The evaluated Checkpoint, which a user may have
    approved already, is not compared with itself.
    """
    known, now = run.status.live, rival_of(run.snapshot, run.job.spec.model_line, evaluated)
    if known is not None and (has_begun(run, stage) or known.checkpoint == now.checkpoint):
        return None
    renewals = 0 if known is None else known.renewals
    run.update(live=_compared(now, renewals))
    return Working(Reason.EVALUATING, f"comparing with {_described(now)}")


def is_outdated(run: Run, evaluated: str) -> bool:
    """Whether the champion is another one than the recorded one, and not the evaluated Checkpoint itself."""
    known, now = run.status.live, champion_of(run.snapshot, run.job.spec.model_line)
    return known is not None and now.checkpoint not in {known.checkpoint, evaluated}


def renew(run: Run, stage: Stage) -> Working | None:
    """Measure the new champion; None if the champion has changed too often.

    The trainer keeps the predictions of the other models.
    """
    known = run.status.live or LiveComparison()
    now = champion_of(run.snapshot, run.job.spec.model_line)
    renewals = known.renewals + (now.digest != known.digest)
    if renewals > MAX_RENEWALS:
        return None
    message = (
        f"the champion has changed: comparing with {_described(now)} instead of {_described(known)}"
        f" (renewal {renewals} of {MAX_RENEWALS})"
    )
    run.update(live=_compared(now, renewals), evaluation=None)
    reopen(run, stage)
    run.condition(ConditionType.EVALUATED, Reason.EVALUATING, message, "False")
    run.draft.event(EventReason.EVALUATION_RENEWED, message)
    return Working(Reason.EVALUATING, message)


def given_up(evaluation: EvaluationStatus) -> EvaluationStatus:
    """The evaluation of a run whose champion keeps changing: no gate decides it."""
    update = {"verdict": "Undecided", "reason": Reason.CHAMPION_KEEPS_CHANGING}
    return evaluation.model_copy(update=update)


def _compared(champion: ComparedChampion, renewals: int) -> LiveComparison:
    return LiveComparison(checkpoint=champion.checkpoint, digest=champion.digest, renewals=renewals)


def _described(live: ComparedChampion) -> str:
    return "no champion" if live.checkpoint is None else f"champion {live.checkpoint}"
