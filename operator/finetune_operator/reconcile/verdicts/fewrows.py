# SPDX-License-Identifier: Apache-2.0
"""Warn about gates that are decided by the point value of few rows."""

from typing import Final

from finetune_operator.api.evaluation import Gate, Score
from finetune_operator.status.progress import find_score
from finetune_trainer.contract.vocabulary import listed

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
        f"Gates on {listed(tuple(few))} are decided by the values of {rows} rows; with fewer than {MIN_ROWS}"
        " rows, chance alone can move a share by 0.1: add test rows, or set gates[].confidence"
    )
