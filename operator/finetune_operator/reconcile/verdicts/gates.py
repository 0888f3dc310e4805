# SPDX-License-Identifier: Apache-2.0
"""Decide whether what a trainer measured passes the gates.

A gate without `confidence` is decided by the measured values, a gate with it by the one-sided bounds that the
trainer computed from the rows. The operator computes no statistics.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from finetune_operator.api.evaluation import Gate, GateResult, GateVerdict, Verdict
from finetune_operator.reconcile.verdicts.measurements import Measurements, rounded
from finetune_operator.status.conditions import shortened
from finetune_trainer.contract.evaluation import GateEvidence
from finetune_trainer.contract.metrics import find_metric

TOLERANCE: Final = 1e-9
"""Tolerance for rounding of binary fractions, so that a gain of 0.7 - 0.4 reaches a minimum of 0.3."""
MAX_GATE_MESSAGE_CHARACTERS: Final = 400
WORST_FIRST: Final[tuple[GateVerdict, ...]] = ("Failed", "Undecided", "NotApplicable", "Passed")


def decide(gates: tuple[Gate, ...], measured: Measurements) -> tuple[tuple[GateResult, ...], Verdict]:
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
            message=shortened(", ".join(part.message for part in parts), MAX_GATE_MESSAGE_CHARACTERS),
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
            yield self._at_least(figure, gate.min)
        if gate.max is not None:
            yield self._at_most(figure, gate.max)
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
        # A minGain of 0 must not promote a model that learned nothing; a negative one allows equal scores.
        return self._at_least(figure, limit, strict=limit == 0)

    def _at_least(self, figure: _Figure, limit: float, *, strict: bool = False) -> _Part:
        def reaches(value: float) -> bool:
            return value > limit + TOLERANCE if strict else value >= limit - TOLERANCE

        over, under = (">", "≤") if strict else ("≥", "<")
        if self.gate.confidence is None:
            passed = reaches(figure.value)
            sign = over if passed else under
            return _Part("Passed" if passed else "Failed", f"{figure.text} {sign} {limit:.4g}")
        if figure.low is None and figure.high is None:
            return self._without_bounds(figure)
        if figure.low is not None and reaches(figure.low):
            return self._decided("Passed", figure, f"at least {figure.low:.4g}", f"{over} {limit:.4g}")
        if figure.high is not None and not reaches(figure.high):
            return self._decided("Failed", figure, f"at most {figure.high:.4g}", f"{under} {limit:.4g}")
        return self._undecided(figure, f"{over} {limit:.4g}")

    def _at_most(self, figure: _Figure, limit: float) -> _Part:
        def reaches(value: float) -> bool:
            return value <= limit + TOLERANCE

        if self.gate.confidence is None:
            passed = reaches(figure.value)
            sign = "≤" if passed else ">"
            return _Part("Passed" if passed else "Failed", f"{figure.text} {sign} {limit:.4g}")
        if figure.low is None and figure.high is None:
            return self._without_bounds(figure)
        if figure.high is not None and reaches(figure.high):
            return self._decided("Passed", figure, f"at most {figure.high:.4g}", f"≤ {limit:.4g}")
        if figure.low is not None and not reaches(figure.low):
            return self._decided("Failed", figure, f"at least {figure.low:.4g}", f"> {limit:.4g}")
        return self._undecided(figure, f"≤ {limit:.4g}")

    def _decided(self, verdict: GateVerdict, figure: _Figure, bound: str, limit: str) -> _Part:
        return _Part(verdict, f"{figure.text}, {bound} at confidence {self.gate.confidence:.4g} ({limit})")

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
