"""Gates: whether the scores clear the bar."""

from typing import Final

from finetune_operator.api.evaluation import Gate
from finetune_operator.api.evaluationstatus import GateResult, GateVerdict, Score, Verdict
from finetune_operator.status.conditions import shortened
from finetune_operator.status.progress import find_score
from finetune_trainer.contract.metrics import METRICS

TOLERANCE: Final = 1e-9
"""So that 0.7 - 0.4 reaches a bar of 0.3, which it misses by one rounding of binary fractions."""


def decide(gates: tuple[Gate, ...], scores: tuple[Score, ...]) -> tuple[tuple[GateResult, ...], Verdict]:
    """Each gate's result, and the verdict: one that fails fails all, one that is undecided never passes."""
    results = tuple(_judge(gate, scores) for gate in gates)
    verdicts = {result.verdict for result in results}
    if not results:
        return (), "NoGates"
    if "Failed" in verdicts:
        return results, "Failed"
    return results, "Undecided" if "Undecided" in verdicts else "Passed"


def _judge(gate: Gate, scores: tuple[Score, ...]) -> GateResult:
    tuned = find_score(scores, gate.metric, "Tuned")
    if tuned is None:
        return _result(gate, "Undecided", [f"{gate.metric} of the tuned model was not measured"])
    passed, said = True, []
    if gate.min is not None:
        reached = tuned.value >= gate.min - TOLERANCE
        said.append(f"{gate.metric} {tuned.value:.4g} {'≥' if reached else '<'} {gate.min:.4g}")
        passed = passed and reached
    if gate.max is not None:
        reached = tuned.value <= gate.max + TOLERANCE
        said.append(f"{gate.metric} {tuned.value:.4g} {'≤' if reached else '>'} {gate.max:.4g}")
        passed = passed and reached
    if gate.min_gain is not None and gate.over is not None:
        other = find_score(scores, gate.metric, gate.over)
        if other is None:
            return _result(gate, "Undecided", [*said, f"{gate.metric} of {gate.over} was not measured"])
        gain = METRICS[gate.metric].gain(tuned.value, over=other.value)
        # "No worse" is a negative minGain; 0 must not promote a model that learned nothing.
        strict = gate.min_gain == 0
        reached = gain > TOLERANCE if strict else gain >= gate.min_gain - TOLERANCE
        over, under = (">", "≤") if strict else ("≥", "<")
        said.append(
            f"{gate.metric} gain {gain:.4g} over {gate.over} ({other.value:.4g} → {tuned.value:.4g})"
            f" {over if reached else under} {gate.min_gain:.4g}"
        )
        passed = passed and reached
    return _result(gate, "Passed" if passed else "Failed", said)


def _result(gate: Gate, verdict: GateVerdict, said: list[str]) -> GateResult:
    return GateResult(metric=gate.metric, verdict=verdict, message=shortened(", ".join(said)))
