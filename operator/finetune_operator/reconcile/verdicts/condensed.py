# SPDX-License-Identifier: Apache-2.0
"""Entries of Evaluations, shortened so that a status with all of them stays below 32 KiB."""

from typing import Final

from finetune_operator.api.evaluationstatus import EvaluationStatus, GateResult
from finetune_operator.status.conditions import shortened

MAX_ENTRY_SCORES: Final = 10
MAX_ENTRY_FINDINGS: Final = 4
MAX_TEXT: Final = 120
"""Max characters of the message of a gate or finding. With more than 8 gates, each has less."""
MAX_GATE_TEXTS: Final = 8 * MAX_TEXT


def condensed(entry: EvaluationStatus) -> EvaluationStatus:
    """The entry with the first scores and findings, and without the figures that messages of gates contain.

    Scores of the tuned model and of gated metrics have priority. The store has all of them.
    """
    gated = {gate.metric for gate in entry.gates}
    max_gate_text = min(MAX_TEXT, MAX_GATE_TEXTS // max(1, len(entry.gates)))
    first = sorted(
        range(len(entry.scores)),
        key=lambda index: (
            entry.scores[index].metric not in gated,
            entry.scores[index].subject != "Tuned",
            index,
        ),
    )
    return entry.model_copy(
        update={
            "scores": tuple(entry.scores[index] for index in sorted(first[:MAX_ENTRY_SCORES])),
            "gates": tuple(
                GateResult(
                    metric=gate.metric,
                    over=gate.over,
                    verdict=gate.verdict,
                    message=shortened(gate.message, max_gate_text),
                )
                for gate in entry.gates
            ),
            "findings": tuple(
                finding.model_copy(update={"message": shortened(finding.message, MAX_TEXT)})
                for finding in (entry.findings or ())[:MAX_ENTRY_FINDINGS]
            )
            or None,
        }
    )
