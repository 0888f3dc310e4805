# SPDX-License-Identifier: Apache-2.0
"""Which label was answered for which: the confusion matrix of a classification."""

from collections import Counter
from collections.abc import Sequence
from typing import Final

from finetune_trainer.report.document import Document, showable

MAX_SHOWN_LABELS: Final = 20
"""Labels with a row and a column of their own: those with the most rows."""
MAX_SHOWN_LABEL_CHARACTERS: Final = 80


def confusion(pairs: Sequence[tuple[str, str | None]]) -> Document:
    """The matrix of expected and answered labels; an answer that is not a label is None.

    `counts` has a row per expected label, and in it a column per answered label. If there are more labels
    than MAX_SHOWN_LABELS, the last row has the expected labels without a row of their own. The last column
    has the answers without a column of their own.
    """
    frequency = Counter(expected for expected, _ in pairs)
    labels = sorted(frequency, key=lambda label: (-frequency[label], label))[:MAX_SHOWN_LABELS]
    numbers = {label: number for number, label in enumerate(labels)}
    rest = len(labels)
    counts = [[0] * (rest + 1) for _ in range(rest + (len(frequency) > rest))]
    for expected, answered in pairs:
        column = rest if answered is None else numbers.get(answered, rest)
        counts[numbers.get(expected, rest)][column] += 1
    return {"labels": [showable(_shortened(label)) for label in labels], "counts": counts}


def _shortened(label: str) -> str:
    if len(label) <= MAX_SHOWN_LABEL_CHARACTERS:
        return label
    return label[: MAX_SHOWN_LABEL_CHARACTERS - 1] + "…"
