# SPDX-License-Identifier: Apache-2.0
"""Entries of Evaluations, shortened so that a status with all of them stays below 32 KiB."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from finetune_operator.api.evaluation import EvaluationStatus, GateResult
from finetune_operator.status.conditions import shortened

T = TypeVar("T")
MAX_ENTRY_SCORES: Final = 10
MAX_ENTRY_GATES: Final = 8
MAX_ENTRY_FINDINGS: Final = 2
MAX_TEXT: Final = 96
"""Characters of the message of a gate or finding."""


def condensed(entry: EvaluationStatus) -> EvaluationStatus:
    """The entry with the first scores, gates and findings, and without the figures in messages of gates.

    Scores of the tuned model and of gated metrics have priority, and so have gates that did not pass. The
    store has all of them.
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
                    message=shortened(gate.message, MAX_TEXT),
                )
                for gate in gates
            ),
            "findings": tuple(
                finding.model_copy(update={"message": shortened(finding.message, MAX_TEXT)})
                for finding in (entry.findings or ())[:MAX_ENTRY_FINDINGS]
            )
            or None,
        }
    )


def _first(entries: Sequence[T], count: int, rank: Callable[[T], Any]) -> tuple[T, ...]:
    """The entries of the lowest ranks, in their order."""
    ranked = sorted(range(len(entries)), key=lambda index: (rank(entries[index]), index))
    return tuple(entries[index] for index in sorted(ranked[:count]))
