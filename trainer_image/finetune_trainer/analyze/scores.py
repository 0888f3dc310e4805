# SPDX-License-Identifier: Apache-2.0
"""Decide the gates on answers. Each model of the endpoint has scores of its own, and the worst one decides.

A gate fails if the rows show, at its confidence, that a model misses a bound. It passes if all models have
answered enough rows and meet the bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from finetune_trainer.analyze.gates import combined, rounded
from finetune_trainer.analyze.probing import ProbeAnswers
from finetune_trainer.contract.analysis import AnalysisFigure, AnalysisGateBound, AnalysisVerdict
from finetune_trainer.contract.configs import ProbedModel
from finetune_trainer.contract.metrics import METRICS
from finetune_trainer.scoring.textmetrics.table import TEXT_METRICS
from finetune_trainer.statistics.bootstrap import resampled_mean
from finetune_trainer.statistics.estimate import Estimate, one_sided
from finetune_trainer.statistics.paired import PairedProportions
from finetune_trainer.statistics.proportion import Proportion

SEVERITY: tuple[AnalysisVerdict, ...] = ("Fail", "Inconclusive", "Pass")


@dataclass(frozen=True, slots=True)
class Answers:
    """What the models have answered at one look."""

    models: Sequence[ProbedModel]
    rows: Sequence[ProbeAnswers]
    min_rows: int
    looks: int
    """Number of looks at the answers. Each, and each model, gets an equal part of the error of a gate."""
    is_complete: bool
    """Whether no more rows follow, so that a gate can pass."""

    def confidence(self, gate: AnalysisGateBound) -> float:
        """Confidence of one bound of one model at one look."""
        return 1 - (1 - gate.confidence) / (self.looks * len(self.models))


def decide_score(gate: AnalysisGateBound, answers: Answers) -> AnalysisFigure:
    """The figure and the verdict of the worst model."""
    figures = [_figure_of(model, gate, answers) for model in answers.models]
    if not figures:
        return AnalysisFigure(metric=gate.metric, verdict="Inconclusive")
    return min(figures, key=lambda each: (SEVERITY.index(each.verdict), each.value or 0))


def _figure_of(model: ProbedModel, gate: AnalysisGateBound, answers: Answers) -> AnalysisFigure:
    value_of, confidence = TEXT_METRICS[gate.metric], answers.confidence(gate)
    new: list[float] = []
    pairs: list[tuple[float, float]] = []
    for row in answers.rows:
        if row.model != model.name or row.new is None or not row.accepted:
            continue
        new.append(value_of(row.new, row.accepted))
        if row.stable is not None:
            pairs.append((new[-1], value_of(row.stable, row.accepted)))
    if not new:
        return AnalysisFigure(metric=gate.metric, model=model.name, rows=0, verdict="Inconclusive")
    score = _score(gate, new)
    interval = one_sided(score, confidence)
    verdicts: list[AnalysisVerdict] = []
    if gate.min is not None:
        verdicts.append(_decide_score_bound(answers, len(new), score.value, interval.high, gate.min))
    stable: Estimate | None = None
    if gate.max_decrease is not None and not model.is_new:
        if pairs:
            gain, stable = _gain(gate, pairs), _score(gate, [value for _, value in pairs])
            high = one_sided(gain, confidence).high
            verdicts.append(_decide_score_bound(answers, len(pairs), gain.value, high, -gate.max_decrease))
        else:
            verdicts.append("Inconclusive")
    return AnalysisFigure(
        metric=gate.metric,
        model=model.name,
        rows=len(new),
        value=rounded(score.value),
        low=rounded(interval.low),
        high=rounded(interval.high),
        stable=None if stable is None else rounded(stable.value),
        verdict=combined(verdicts) if verdicts else "Pass",
    )


def _decide_score_bound(
    answers: Answers, rows: int, value: float, high: float, bound: float
) -> AnalysisVerdict:
    """The verdict on a lower bound.

    Args:
        answers: what the models have answered.
        rows: number of rows that the value rests on.
        value: the value.
        high: its upper bound at the confidence of the gate.
        bound: the bound of the gate.
    """
    if rows < answers.min_rows:
        return "Inconclusive"
    if high < bound:
        return "Fail"
    return "Pass" if answers.is_complete and value >= bound else "Inconclusive"


def _score(gate: AnalysisGateBound, values: Sequence[float]) -> Estimate:
    if METRICS[gate.metric].kind == "Proportion":
        return Proportion(round(sum(values)), len(values))
    return resampled_mean(values, None, METRICS[gate.metric].range)


def _gain(gate: AnalysisGateBound, pairs: Sequence[tuple[float, float]]) -> Estimate:
    """The value of the new revision minus that of the stable one, for the same rows."""
    differences = [new - stable for new, stable in pairs]
    if METRICS[gate.metric].kind == "Proportion":
        return PairedProportions(differences.count(1), differences.count(-1), len(pairs))
    low, high = METRICS[gate.metric].range
    return resampled_mean(differences, None, (low - high, high - low))
