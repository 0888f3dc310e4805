# SPDX-License-Identifier: Apache-2.0
"""What a trainer measured, in the form in which gates and statuses use it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune_operator.api.evaluation import MAX_SCORES, SUBJECT_PATTERN, Score
from finetune_operator.status.progress import find_score
from finetune_trainer.contract.evaluation import CheckFinding as MeasuredFinding
from finetune_trainer.contract.evaluation import GateEvidence
from finetune_trainer.contract.metrics import METRIC_PATTERN
from finetune_trainer.contract.results import EvaluateResult


@dataclass(frozen=True, slots=True)
class Measurements:
    """The figures of one evaluation."""

    scores: tuple[Score, ...]
    evidence: Mapping[int, GateEvidence] = field(default_factory=dict)
    """By the index of the gate."""
    findings: tuple[MeasuredFinding, ...] = ()
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """By subject, why it was not measured."""
    opponents: Mapping[str, str] = field(default_factory=dict)
    """By metric of a judge, whose answers it compares with those of the tuned model."""
    has_champion: bool = True
    """Whether the model line had a champion when the evaluation began."""

    def find(self, metric: str, subject: str) -> Score | None:
        """The score of a metric for a subject, or None."""
        return find_score(self.scores, metric, subject)

    @classmethod
    def of(
        cls, result: EvaluateResult, *, has_champion: bool, opponents: Mapping[str, str]
    ) -> "Measurements":
        """The figures of a result."""
        return cls(
            scores=tuple(
                Score(
                    metric=score.metric,
                    subject=score.subject,
                    value=score.value,
                    rows=score.rows,
                    low=rounded(score.low),
                    high=rounded(score.high),
                )
                for score in result.scores
                # A newer trainer may use names that this release cannot store.
                if re.fullmatch(METRIC_PATTERN, score.metric) and re.fullmatch(SUBJECT_PATTERN, score.subject)
            ),
            evidence={each.gate: each for each in result.evidence},
            findings=result.findings,
            unmeasured={each.subject: each.message for each in result.unmeasured},
            opponents=opponents,
            has_champion=has_champion,
        )


def shown_scores(scores: tuple[Score, ...], gated: frozenset[str]) -> tuple[Score, ...]:
    """The scores that a status has room for, in their order; those of metrics in `gated` have priority."""
    if len(scores) <= MAX_SCORES:
        return scores
    kept = sorted(range(len(scores)), key=lambda index: (scores[index].metric not in gated, index))
    return tuple(scores[index] for index in sorted(kept[:MAX_SCORES]))


def rounded(value: float | None) -> float | None:
    """A bound of an interval with the digits that a status shows."""
    return None if value is None else float(f"{value:.4g}")
