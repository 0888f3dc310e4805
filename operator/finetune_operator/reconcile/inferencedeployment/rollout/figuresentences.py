# SPDX-License-Identifier: Apache-2.0
"""Sentences about the figures of an analysis."""

from finetune_operator.api.rollout_analysis import AnalysisGate
from finetune_trainer.contract.analysis import AnalysisFigure


def figure_sentence(figure: AnalysisFigure, gate: AnalysisGate) -> str:
    """Figure and bounds of a gate.

    `error_rate 0.3 (at least 0.2; max 0.05; stable 0 + 0.02)`, or of the worst model
    `exact_match of tuned 0.3 (at most 0.5; 60 rows; min 0.8; stable 0.9 - 0.05)`.
    """
    quantile = f" p{figure.quantile * 100:g}" if figure.quantile is not None else ""
    model = f" of {figure.model}" if figure.model is not None else ""
    is_lower = gate.min is not None or gate.max_decrease is not None
    stable = "unknown" if figure.stable is None else f"{figure.stable:g}"
    details = [
        *(_limit(figure, is_lower=is_lower) if figure.verdict == "Fail" else []),
        *([f"{figure.rows} rows"] if figure.rows is not None else []),
        *([f"min {gate.min:g}"] if gate.min is not None else []),
        *([f"stable {stable} - {gate.max_decrease:g}"] if gate.max_decrease is not None else []),
        *([f"max {gate.max:g}"] if gate.max is not None else []),
        *([f"stable {stable} + {gate.max_increase:g}"] if gate.max_increase is not None else []),
        *([f"stable {stable} × {gate.max_ratio:g}"] if gate.max_ratio is not None else []),
    ]
    value = "unknown" if figure.value is None else f"{figure.value:g}"
    return f"{figure.metric}{quantile}{model} {value} ({'; '.join(details)})"


def _limit(figure: AnalysisFigure, *, is_lower: bool) -> list[str]:
    """The bound of the figure that misses the bound of the gate."""
    bound, word = (figure.high, "at most") if is_lower else (figure.low, "at least")
    return [] if bound is None else [f"{word} {bound:g}"]
