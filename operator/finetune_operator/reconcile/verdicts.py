# SPDX-License-Identifier: Apache-2.0
"""The verdict of an evaluation, and its entry in a status, from what the trainer measured.

A gate without `confidence` is decided by the measured values, a gate with it by the one-sided bounds that the
trainer computed from the rows. The operator computes no statistics.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from finetune_operator.api.evaluation import (
    MAX_FINDINGS,
    MAX_SCORES,
    SUBJECT_PATTERN,
    CheckFinding,
    EvaluationSettings,
    EvaluationStatus,
    Gate,
    GateResult,
    GateVerdict,
    Score,
    Verdict,
)
from finetune_operator.api.meta import Name
from finetune_operator.status.conditions import shorten
from finetune_operator.status.progress import find_score
from finetune_operator.status.reasons import Reason
from finetune_trainer.contract.evaluation import CheckFinding as MeasuredFinding
from finetune_trainer.contract.evaluation import GateEvidence, UnmeasuredSubject
from finetune_trainer.contract.gates import GateLimit
from finetune_trainer.contract.metrics import METRIC_PATTERN, find_metric
from finetune_trainer.contract.results import EvaluateResult
from finetune_trainer.contract.vocabulary import join_names


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


def select_scores(scores: tuple[Score, ...], gated: frozenset[str]) -> tuple[Score, ...]:
    """The scores that a status has room for, in their order; those of metrics in `gated` have priority."""
    if len(scores) <= MAX_SCORES:
        return scores
    kept = sorted(range(len(scores)), key=lambda index: (scores[index].metric not in gated, index))
    return tuple(scores[index] for index in sorted(kept[:MAX_SCORES]))


def rounded(value: float | None) -> float | None:
    """A bound of an interval with the digits that a status shows."""
    return None if value is None else float(f"{value:.4g}")


MIN_ROWS: Final = 100
"""With fewer rows, the 95 % interval of a share can be wider than ± 0.1 (Wilson, at 0.5)."""


def few_rows_warning(gates: tuple[Gate, ...], scores: tuple[Score, ...]) -> str | None:
    """A sentence for the user; None if each gate without a confidence was measured on enough rows."""
    few: dict[str, int] = {}
    for gate in gates:
        score = find_score(scores, gate.metric, "Tuned")
        if gate.confidence is None and score is not None and score.rows < MIN_ROWS:
            few[gate.metric] = score.rows
    if not few:
        return None
    counts = sorted(set(few.values()))
    rows = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return (
        f"Gates on {join_names(tuple(few))} are decided by the values of {rows} rows; with fewer than "
        f"{MIN_ROWS}"
        " rows, chance alone can move a share by 0.1: add test rows, or set gates[].confidence"
    )


MAX_GATE_MESSAGE_CHARACTERS: Final = 400
WORST_FIRST: Final[tuple[GateVerdict, ...]] = ("Failed", "Undecided", "NotApplicable", "Passed")


def decide_gates(gates: tuple[Gate, ...], measured: Measurements) -> tuple[tuple[GateResult, ...], Verdict]:
    """The result of each gate, and the verdict: the worst of failed, undecided and passed.

    A finding that vetoes the promotion makes the verdict `Failed`, with or without gates. A gate that
    does not apply counts as passed.
    """
    results = tuple(
        _GateDecision(gate, measured.evidence.get(index), measured).result()
        for index, gate in enumerate(gates)
    )
    verdicts = {result.verdict for result in results}
    if "Failed" in verdicts or any(finding.veto for finding in measured.findings):
        return results, "Failed"
    if not results:
        return (), "NoGates"
    return results, "Undecided" if "Undecided" in verdicts else "Passed"


class _Part(NamedTuple):
    """Decision on one bound of a gate."""

    verdict: GateVerdict
    message: str


class _Figure(NamedTuple):
    """A measured value or gain, with its bounds at the confidence of the gate; a bound may be infinite."""

    text: str
    value: float
    low: float | None = None
    high: float | None = None


def limit_text(limit: GateLimit, *, is_met: bool) -> str:
    """A limit as a comparison that is true of the value: `≥ 0.8`, or `< 0.8` if it is not met."""
    signs = ("≥", "<", ">", "≤") if limit.is_minimum else ("≤", ">", "<", "≥")
    return f"{signs[2 * limit.is_strict + (not is_met)]} {limit.limit:.4g}"


@dataclass(frozen=True, slots=True)
class _GateDecision:
    gate: Gate
    evidence: GateEvidence | None
    measured: Measurements

    def result(self) -> GateResult:
        gate, tuned = self.gate, self.measured.find(self.gate.metric, "Tuned")
        figures = self.evidence or GateEvidence(gate=0, rows=0 if tuned is None else tuned.rows)
        value = figures.value if tuned is None else tuned.value
        over = gate.over or self.measured.opponents.get(gate.metric)
        parts = [self._unmeasured(over)] if value is None else list(self._parts(value))
        return GateResult(
            metric=gate.metric,
            over=over,
            verdict=min((part.verdict for part in parts), key=WORST_FIRST.index),
            message=shorten(", ".join(part.message for part in parts), MAX_GATE_MESSAGE_CHARACTERS),
            value=value,
            low=rounded(figures.low),
            high=rounded(figures.high),
            gain=rounded(figures.gain),
            gain_low=rounded(figures.gain_low),
            gain_high=rounded(figures.gain_high),
            confidence=gate.confidence,
            rows=figures.rows or None,
            more_rows=figures.more_rows,
        )

    def _unmeasured(self, over: str | None) -> _Part:
        """The decision without a value of the tuned model."""
        metric = self.gate.metric
        if over == "Live" and metric in self.measured.opponents and not self.measured.has_champion:
            message = f"{metric} has no value, because the model line has no other champion to compare with"
            return _Part("NotApplicable", message)
        reason = "" if self.evidence is None else self.evidence.undecided
        because = f": {reason}" if reason else ""
        return _Part("Undecided", f"{metric} of the tuned model was not measured{because}")

    def _parts(self, value: float) -> Iterator[_Part]:
        """The decision on each bound of the gate. `value`: that of the tuned model."""
        gate, figure = self.gate, _Figure(f"{self.gate.metric} {value:.4g}", value)
        if self.evidence is not None:
            figure = figure._replace(low=self.evidence.low, high=self.evidence.high)
        if gate.min is not None:
            yield self._decide(figure, GateLimit(gate.min, is_minimum=True))
        if gate.max is not None:
            yield self._decide(figure, GateLimit(gate.max, is_minimum=False))
        if gate.min_gain is not None and gate.over is not None:
            yield self._gain(value, gate.min_gain, gate.over)

    def _gain(self, value: float, limit: float, over: str) -> _Part:
        metric, measured = self.gate.metric, self.measured
        if over == "Live" and not measured.has_champion:
            message = f"{metric} has no gain over Live, because the model line has no other champion"
            return _Part("NotApplicable", message)
        info, score = find_metric(metric), measured.find(metric, over)
        sign = -1 if info is not None and info.lower_is_better else 1
        if score is not None:
            other, gain = score.value, sign * (value - score.value)
        elif self.evidence is not None and self.evidence.gain is not None:
            # A termination message without room for all scores has the evidence.
            other, gain = value - sign * self.evidence.gain, self.evidence.gain
        else:
            reason = measured.unmeasured.get(over)
            because = "" if reason is None else f": {reason}"
            return _Part("Undecided", f"{metric} of {over} was not measured{because}")
        text = f"{metric} gain {gain:.4g} over {over} ({other:.4g} → {value:.4g})"
        figure = _Figure(text, gain)
        if self.evidence is not None:
            figure = figure._replace(low=self.evidence.gain_low, high=self.evidence.gain_high)
        return self._decide(figure, GateLimit.of_gain(limit))

    def _decide(self, figure: _Figure, limit: GateLimit) -> _Part:
        """The decision on one limit."""
        confidence = self.gate.confidence
        if confidence is not None and figure.low is None and figure.high is None:
            return self._without_bounds(figure)
        verdict = limit.verdict(figure.value, figure.low, figure.high, confidence)
        if verdict == "Undecided":
            return self._undecided(figure, limit_text(limit, is_met=True))
        passed = verdict == "Passed"
        asked = limit_text(limit, is_met=passed)
        if confidence is None:
            return _Part(verdict, f"{figure.text} {asked}")
        # The lower bound lets a minimum pass, the upper bound lets it fail.
        bound = f"at least {figure.low:.4g}" if passed == limit.is_minimum else f"at most {figure.high:.4g}"
        return _Part(verdict, f"{figure.text}, {bound} at confidence {confidence:.4g} ({asked})")

    def _undecided(self, figure: _Figure, limit: str) -> _Part:
        low = "an unknown value" if figure.low is None else f"{figure.low:.4g}"
        high = "an unknown value" if figure.high is None else f"{figure.high:.4g}"
        return _Part(
            "Undecided",
            f"{figure.text}, between {low} and {high} at confidence {self.gate.confidence:.4g}: {limit} is"
            f" undecided, and {self._more_rows()}",
        )

    def _without_bounds(self, figure: _Figure) -> _Part:
        reason = "" if self.evidence is None else self.evidence.undecided
        reason = reason or f"the rows give no bounds, and {self._more_rows()}"
        return _Part("Undecided", f"{figure.text}: {reason}")

    def _more_rows(self) -> str:
        more = None if self.evidence is None else self.evidence.more_rows
        return f"about {more} more rows would decide it" if more else "more rows may decide it"


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
    measured = Measurements.of(result, has_champion=had_champion, opponents=spec.opponents)
    gates, verdict = decide_gates(spec.gates, measured)
    engine = result.engine
    # Vetoes first, so that a long list of findings cannot hide them.
    findings = sorted(measured.findings, key=lambda finding: not finding.veto)[:MAX_FINDINGS]
    return EvaluationStatus(
        checkpoint=checkpoint,
        source=source,
        dataset_version=dataset_version,
        dataset_digest=dataset_digest,
        split=result.split,
        scores=select_scores(measured.scores, frozenset(gate.metric for gate in spec.gates)),
        gates=gates,
        verdict=verdict,
        reason=Reason.VETOED if any(finding.veto for finding in findings) else None,
        findings=tuple(
            CheckFinding(check=each.check, veto=each.veto, message=shorten(each.message)) for each in findings
        )
        or None,
        champion=champion,
        live=live,
        untested_answers=untested_answers,
        report_uri=result.report_uri,
        answer_engine=None if engine is None else f"{engine.name} {engine.version}"[:MAX_ENGINE_CHARACTERS],
    )


def drop_other_champions(
    spec: EvaluationSettings, result: EvaluateResult, digest: str | None
) -> EvaluateResult:
    """The result without figures of another champion.

    If a pod is gone, its result is read from the store, which has only the newest one.
    """
    if result.live == digest:
        return result
    over_live = {index for index, gate in enumerate(spec.gates) if spec.is_over_live(gate)}
    judges = {metric for metric, against in spec.opponents.items() if against == "Live"}
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
    vetoes = (finding.message for finding in find_vetoes(evaluation))
    return "; ".join((*vetoes, *(gate.message for gate in evaluation.gates))) or "no gates"


def find_vetoes(evaluation: EvaluationStatus) -> tuple[CheckFinding, ...]:
    """The findings that block the promotion."""
    return tuple(finding for finding in evaluation.findings or () if finding.veto)


def notes(spec: EvaluationSettings, evaluation: EvaluationStatus) -> tuple[str, ...]:
    """Sentences for the user that do not change the verdict."""
    warned = few_rows_warning(spec.gates, evaluation.scores)
    found = tuple(finding.message for finding in evaluation.findings or () if not finding.veto)
    return found if warned is None else (warned, *found)


T = TypeVar("T")
MAX_ENTRY_SCORES: Final = 10
MAX_ENTRY_GATES: Final = 8
MAX_ENTRY_FINDINGS: Final = 2
MAX_TEXT: Final = 96
"""Characters of the message of a gate or finding."""


def condense(entry: EvaluationStatus) -> EvaluationStatus:
    """The entry with the first scores, gates and findings, and without the figures in messages of gates.

    A status with all entries of Evaluations stays below 32 KiB. Scores of the tuned model and of gated
    metrics have priority, and so have gates that did not pass. The store has all of them.
    """
    gates = _first(entry.gates, MAX_ENTRY_GATES, lambda gate: gate.verdict in {"Passed", "NotApplicable"})
    gated = {gate.metric for gate in gates}
    return entry.model_copy(
        update={
            "scores": _first(
                entry.scores,
                MAX_ENTRY_SCORES,
                lambda score: (score.metric not in gated, score.subject != "Tuned"),
            ),
            "gates": tuple(
                GateResult(
                    metric=gate.metric,
                    over=gate.over,
                    verdict=gate.verdict,
                    message=shorten(gate.message, MAX_TEXT),
                )
                for gate in gates
            ),
            "findings": tuple(
                finding.model_copy(update={"message": shorten(finding.message, MAX_TEXT)})
                for finding in (entry.findings or ())[:MAX_ENTRY_FINDINGS]
            )
            or None,
        }
    )


def _first(entries: Sequence[T], count: int, rank: Callable[[T], Any]) -> tuple[T, ...]:
    """The entries of the lowest ranks, in their order."""
    ranked = sorted(range(len(entries)), key=lambda index: (rank(entries[index]), index))
    return tuple(entries[index] for index in sorted(ranked[:count]))
