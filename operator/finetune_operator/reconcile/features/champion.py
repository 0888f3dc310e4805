# SPDX-License-Identifier: Apache-2.0
"""The comparison with the champion of a model line.

The champion is recorded in the status before the Job that measures it is created. A Job of another champion
therefore never runs next to it, the comparison of a verdict is always known, and the content of the champion
is not removed meanwhile.
"""

from typing import Any, Final

from finetune_operator.api.checkpoint import AdapterRecord, Checkpoint
from finetune_operator.api.evaluation import (
    ComparedChampion,
    EvaluationSettings,
    EvaluationStatus,
    LiveComparison,
)
from finetune_operator.api.finetune_job_status import FineTuneJobStatus
from finetune_operator.engine.resources import JOB
from finetune_operator.manifests.weights import live_model as live_model_of
from finetune_operator.reconcile.inputs.snapshot import Snapshot
from finetune_operator.reconcile.passes import Working
from finetune_operator.reconcile.stages.accounting import reopen
from finetune_operator.reconcile.stages.jobs import running_orphans
from finetune_operator.reconcile.stages.stage_request import StagePass
from finetune_operator.reconcile.verdicts import find_vetoes
from finetune_operator.status.reasons import ConditionType, EventReason, Reason
from finetune_trainer.contract.evaluation import LiveModel
from finetune_trainer.contract.vocabulary import Stage

MAX_RENEWALS: Final = 3


def find_champion(snapshot: Snapshot, line: str) -> ComparedChampion:
    """The champion of a model line at present."""
    champion = snapshot.checkpoints.champion(line)
    if champion is None:
        return ComparedChampion()
    return ComparedChampion(checkpoint=champion.name, digest=champion.spec.digest)


def find_rival(snapshot: Snapshot, line: str, evaluated: str) -> ComparedChampion:
    """The champion, unless it is the evaluated Checkpoint, which is not compared with itself."""
    now = find_champion(snapshot, line)
    return ComparedChampion() if now.checkpoint == evaluated else now


def has_begun(run: StagePass[Any], stage: Stage) -> bool:
    """Whether the stage has a Job or a running pod, so that its champion is not replaced any more."""
    name = run.job_names(stage).stage
    return name in run.snapshot.children[JOB] or bool(running_orphans(run.snapshot, name))


def live_adapter(run: StagePass[Any]) -> AdapterRecord | None:
    """Properties of the recorded champion's adapter; None if it has none."""
    champion = _recorded_champion(run)
    return None if champion is None else champion.spec.lineage.adapter


def live_model(run: StagePass[Any]) -> LiveModel | None:
    """The recorded champion as the trainer needs it; None if there is none."""
    champion = _recorded_champion(run)
    return None if champion is None else live_model_of(champion)


def _recorded_champion(run: StagePass[Any]) -> Checkpoint | None:
    known = run.status.live
    return run.snapshot.checkpoints.get(known.checkpoint) if known and known.checkpoint else None


def describe_champion(live: ComparedChampion) -> str:
    """The champion in a sentence."""
    return "no champion" if live.checkpoint is None else f"champion {live.checkpoint}"


def depends_on_champion(spec: EvaluationSettings, evaluation: EvaluationStatus) -> bool:
    """Whether the verdict depends on the champion: a gate compares with it, and nothing else has failed."""
    if not any(map(spec.is_over_live, spec.gates)) or find_vetoes(evaluation):
        return False
    return not any(gate.verdict == "Failed" and gate.over != "Live" for gate in evaluation.gates)


def choose_champion(
    run: StagePass[FineTuneJobStatus], line: str, stage: Stage, evaluated: str
) -> Working | None:
    """Record the champion of the model line to compare a run with; None once it is recorded.

    Before the stage has a Job, a newer champion replaces it. The evaluated Checkpoint, which a user may have
    approved already, is not compared with itself.
    """
    known, now = run.status.live, find_rival(run.snapshot, line, evaluated)
    if known is not None and (has_begun(run, stage) or known.checkpoint == now.checkpoint):
        return None
    renewals = 0 if known is None else known.renewals
    run.update(live=_compared(now, renewals))
    return Working(Reason.EVALUATING, f"comparing with {describe_champion(now)}")


def is_champion_outdated(run: StagePass[FineTuneJobStatus], line: str, evaluated: str) -> bool:
    """Whether the champion is another one than the recorded one, and not the evaluated Checkpoint itself."""
    known, now = run.status.live, find_champion(run.snapshot, line)
    return known is not None and now.checkpoint not in {known.checkpoint, evaluated}


def renew_comparison(run: StagePass[FineTuneJobStatus], line: str, stage: Stage) -> Working | None:
    """Measure the new champion; None if the champion has changed too often.

    The trainer keeps the predictions of the other models.
    """
    known = run.status.live or LiveComparison()
    now = find_champion(run.snapshot, line)
    renewals = known.renewals + (now.digest != known.digest)
    if renewals > MAX_RENEWALS:
        return None
    message = (
        f"the champion has changed: comparing with {describe_champion(now)} instead of"
        f" {describe_champion(known)} (renewal {renewals} of {MAX_RENEWALS})"
    )
    run.update(live=_compared(now, renewals), evaluation=None)
    reopen(run, stage)
    run.condition(ConditionType.EVALUATED, Reason.EVALUATING, message, "False")
    run.draft.event(EventReason.EVALUATION_RENEWED, message)
    return Working(Reason.EVALUATING, message)


def give_up_comparison(evaluation: EvaluationStatus) -> EvaluationStatus:
    """The evaluation of a run whose champion keeps changing: no gate decides it."""
    update = {"verdict": "Undecided", "reason": Reason.CHAMPION_KEEPS_CHANGING}
    return evaluation.model_copy(update=update)


def _compared(champion: ComparedChampion, renewals: int) -> LiveComparison:
    return LiveComparison(checkpoint=champion.checkpoint, digest=champion.digest, renewals=renewals)
