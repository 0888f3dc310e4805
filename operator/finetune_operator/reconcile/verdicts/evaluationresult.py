# SPDX-License-Identifier: Apache-2.0
"""The status of an evaluation, from the result of its stage."""

from typing import Final

from finetune_operator.api.evaluation import MAX_FINDINGS, CheckFinding, EvaluationSettings, EvaluationStatus
from finetune_operator.api.meta import Name
from finetune_operator.manifests.configs import is_over_live, opponents_of
from finetune_operator.reconcile.verdicts.fewrows import few_rows_warning
from finetune_operator.reconcile.verdicts.gates import decide
from finetune_operator.reconcile.verdicts.measurements import Measurements, shown_scores
from finetune_operator.status.conditions import shortened
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.evaluation import UnmeasuredSubject
from finetune_trainer.contract.results import EvaluateResult

MAX_ENGINE_CHARACTERS: Final = 128
"""Limit of the name and version of an engine in the status."""


def evaluation_status(
    spec: EvaluationSettings,
    result: EvaluateResult,
    *,
    checkpoint: Name,
    source: str,
    dataset_version: Name | None,
    dataset_digest: str | None,
    champion: Name | None,
    live: Name | None = None,
    untested_answers: int | None = None,
) -> EvaluationStatus:
    """The scores, the results of the gates, and the verdict.

    Args:
        checkpoint: the Checkpoint that was evaluated.
        source: who measured it: `lines.scores.OF_RUN`, or the name of an Evaluation.
        dataset_version: DatasetVersion of the rows.
        dataset_digest: its digest.
        champion: champion of the model line when the evaluation began.
        live: Checkpoint that was measured as Live.
        untested_answers: number of answers in training rows that no measured row has.
    """
    # A champion that was measured decides, even if it was deleted since.
    had_champion = champion is not None or result.live is not None
    measured = Measurements.of(result, has_champion=had_champion, opponents=opponents_of(spec))
    gates, verdict = decide(spec.gates, measured)
    engine = result.engine
    # Vetoes first, so that a long list of findings cannot hide them.
    findings = sorted(measured.findings, key=lambda finding: not finding.veto)[:MAX_FINDINGS]
    return EvaluationStatus(
        checkpoint=checkpoint,
        source=source,
        dataset_version=dataset_version,
        dataset_digest=dataset_digest,
        split=result.split,
        scores=shown_scores(measured.scores, frozenset(gate.metric for gate in spec.gates)),
        gates=gates,
        verdict=verdict,
        reason=Reason.VETOED if any(finding.veto for finding in findings) else None,
        findings=tuple(
            CheckFinding(check=each.check, veto=each.veto, message=shortened(each.message))
            for each in findings
        )
        or None,
        champion=champion,
        live=live,
        untested_answers=untested_answers,
        report_uri=result.report_uri,
        answer_engine=None if engine is None else f"{engine.name} {engine.version}"[:MAX_ENGINE_CHARACTERS],
    )


def of_champion(spec: EvaluationSettings, result: EvaluateResult, digest: str | None) -> EvaluateResult:
    """The result without figures of another champion.

    If a pod is gone, its result is read from the store, which has only the newest one.
    """
    if result.live == digest:
        return result
    over_live = {index for index, gate in enumerate(spec.gates) if is_over_live(spec, gate)}
    judges = {metric for metric, against in opponents_of(spec).items() if against == "Live"}
    other = UnmeasuredSubject(subject="Live", message="the stored result has another champion")
    return result.model_copy(
        update={
            "live": digest,
            "scores": tuple(
                score for score in result.scores if score.subject != "Live" and score.metric not in judges
            ),
            "evidence": tuple(each for each in result.evidence if each.gate not in over_live),
            "unmeasured": (*result.unmeasured, other),
        }
    )


def verdict_text(evaluation: EvaluationStatus) -> str:
    """What decided: vetoes, and the gates."""
    vetoes = (finding.message for finding in vetoes_of(evaluation))
    return "; ".join((*vetoes, *(gate.message for gate in evaluation.gates))) or "no gates"


def vetoes_of(evaluation: EvaluationStatus) -> tuple[CheckFinding, ...]:
    """The findings that block the promotion."""
    return tuple(finding for finding in evaluation.findings or () if finding.veto)


def notes(spec: EvaluationSettings, evaluation: EvaluationStatus) -> tuple[str, ...]:
    """Sentences for the user that do not change the verdict."""
    warned = few_rows_warning(spec.gates, evaluation.scores)
    found = tuple(finding.message for finding in evaluation.findings or () if not finding.veto)
    return found if warned is None else (warned, *found)
