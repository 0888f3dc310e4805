# SPDX-License-Identifier: Apache-2.0
"""Gates in words: what each asks for, and what the rows say. The operator decides, by the same figures."""

from dataclasses import dataclass

from finetune_trainer.report.document import Document
from finetune_trainer.report.evaluation.headline import figure
from finetune_trainer.report.verdict import counted


@dataclass(frozen=True, slots=True)
class GateLine:
    """One bound of a gate in words."""

    asks: str
    value: str
    bound: str
    """One-sided bound at the confidence of the gate; empty if the value itself decides."""


def gate_lines(gate: Document) -> list[GateLine]:
    """The bounds of a gate of the report."""
    lines = []
    for word, bound, sure in (("at least", "min", "low"), ("at most", "max", "high")):
        if gate[bound] is not None:
            asks = f"{gate['metric']} {word} {gate[bound]:g}"
            lines.append(GateLine(asks, figure(gate["value"]), _bound(gate, word, sure)))
    if gate["minGain"] is not None:
        least = f"at least {gate['minGain']:g}" if gate["minGain"] else "more than 0"
        asks = f"{gate['metric']} better than {gate['over']} by {least}"
        gain = figure(gate["gain"], signed=True)
        lines.append(GateLine(asks, gain, _bound(gate, "at least", "gainLow", signed=True)))
    return lines


def gate_note(gate: Document) -> str:
    """Why the gate is undecided, and how many more rows would decide it; empty if nothing is to be said."""
    more = gate["moreRows"]
    rows = "" if more is None else f"About {counted(more, 'more row')} would decide it."
    return " ".join(part for part in (gate["undecided"], rows) if part)


def _bound(gate: Document, word: str, name: str, *, signed: bool = False) -> str:
    if gate["confidence"] is None or gate[name] is None:
        return ""
    return f"{word} {figure(gate[name], signed=signed)} with {100 * gate['confidence']:g} % confidence"
