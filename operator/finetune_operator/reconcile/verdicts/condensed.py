# SPDX-License-Identifier: Apache-2.0
"""Entries of Evaluations, shortened so that a status with all of them stays below 32 KiB."""

from typing import Final

from finetune_operator.api.evaluationstatus import EvaluationStatus, GateResult
from finetune_operator.status.conditions import shortened

MAX_ENTRY_SCORES: Final = 10
MAX_GATE_TEXT: Final = 120
"""Characters of the message of a gate."""


def condensed(entry: EvaluationStatus) -> EvaluationStatus:
    """The entry with the first scores only, and without the figures that the messages of the gates contain.

    Scores of the tuned model and of gated metrics have priority. The store has all of them.
    """
    gated = {gate.metric for gate in entry.gates}
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
                    message=shortened(gate.message, MAX_GATE_TEXT),
                )
                for gate in entry.gates
            ),
        }
    )
