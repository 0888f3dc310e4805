# SPDX-License-Identifier: Apache-2.0
"""The champion that an evaluation compares with, and the renewal of the comparison when it changes.

The champion is recorded in the status before the Job that measures it is created. A Job of another champion
therefore never runs next to it, and the comparison of a verdict is always known.
"""

from typing import Final

from finetune_operator.api.checkpoint import AdapterRecord
from finetune_operator.api.evaluation import EvaluationSpec
from finetune_operator.api.evaluationstatus import EvaluationStatus, LiveComparison
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.evaluateconfig import is_over_live, subjects_of
from finetune_operator.manifests.evaluatedweights import live_model as live_model_of
from finetune_operator.reconcile.finetunejob.run import Run
from finetune_operator.reconcile.stages.jobstate import running_orphans
from finetune_operator.reconcile.stages.usage import reopen
from finetune_operator.reconcile.steps import Working
from finetune_operator.reconcile.verdicts.evaluationresult import vetoes_of
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.evaluation import LiveModel
from finetune_trainer.contract.vocabulary import Stage

MAX_RENEWALS: Final = 3


def compares_live(spec: EvaluationSpec) -> bool:
    """Whether the evaluation measures the champion of the model line."""
    return "Live" in subjects_of(spec)


def decides(spec: EvaluationSpec, evaluation: EvaluationStatus) -> bool:
    """Whether the verdict depends on the champion: a gate compares with it, and nothing else has failed."""
    if not any(is_over_live(spec, gate) for gate in spec.gates) or vetoes_of(evaluation):
        return False
    return not any(gate.verdict == "Failed" and gate.over != "Live" for gate in evaluation.gates)


def choose(run: Run, stage: Stage, evaluated: str) -> Working | None:
    """Record the champion to compare with; None once it is recorded.

    Before the stage has a Job, a newer champion replaces it. The evaluated Checkpoint, which a user may have
    approved already, is not compared with itself.
    """
    known, now = run.status.live, _champion(run)
    if now.checkpoint == evaluated:
        now = LiveComparison()
    name = run.job_names(stage).stage
    begun = name in run.snapshot.children[JOB] or running_orphans(run.snapshot, name)
    if known is not None and (begun or known.checkpoint == now.checkpoint):
        return None
    renewals = 0 if known is None else known.renewals
    run.update(live=now.model_copy(update={"renewals": renewals}))
    return Working(Reason.EVALUATING, f"comparing with {_described(now)}")


def is_outdated(run: Run, evaluated: str) -> bool:
    """Whether the champion is another one than the recorded one, and not the evaluated Checkpoint itself."""
    known, now = run.status.live, _champion(run)
    return known is not None and now.checkpoint not in {known.checkpoint, evaluated}


def renew(run: Run, stage: Stage) -> Working | None:
    """Measure the new champion; None if the champion has changed too often.

    The trainer keeps the predictions of the other models.
    """
    known, now = run.status.live or LiveComparison(), _champion(run)
    renewals = known.renewals + (now.digest != known.digest)
    if renewals > MAX_RENEWALS:
        return None
    message = (
        f"the champion has changed: comparing with {_described(now)} instead of {_described(known)}"
        f" (renewal {renewals} of {MAX_RENEWALS})"
    )
    run.update(live=now.model_copy(update={"renewals": renewals}), evaluation=None)
    reopen(run, stage)
    run.condition(ConditionType.EVALUATED, Reason.EVALUATING, message, "False")
    run.draft.event(EventReason.EVALUATION_RENEWED, message)
    return Working(Reason.EVALUATING, message)


def given_up(evaluation: EvaluationStatus) -> EvaluationStatus:
    """The evaluation of a run whose champion keeps changing: no gate decides it."""
    update = {"verdict": "Undecided", "reason": Reason.CHAMPION_KEEPS_CHANGING}
    return evaluation.model_copy(update=update)


def live_adapter(run: Run) -> AdapterRecord | None:
    """Properties of the recorded champion's adapter; None if it has none."""
    known = run.status.live
    champion = run.snapshot.checkpoints.get(known.checkpoint) if known and known.checkpoint else None
    return None if champion is None else champion.spec.lineage.adapter


def live_model(run: Run) -> LiveModel | None:
    """The recorded champion as the trainer needs it; None if the model line has none."""
    known = run.status.live
    champion = run.snapshot.checkpoints.get(known.checkpoint) if known and known.checkpoint else None
    return None if champion is None else live_model_of(champion)


def _champion(run: Run) -> LiveComparison:
    champion = run.snapshot.checkpoints.champion(run.job.spec.model)
    if champion is None:
        return LiveComparison()
    return LiveComparison(checkpoint=champion.name, digest=champion.spec.digest)


def _described(live: LiveComparison) -> str:
    return "no champion" if live.checkpoint is None else f"champion {live.checkpoint}"
