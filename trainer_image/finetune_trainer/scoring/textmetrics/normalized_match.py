# SPDX-License-Identifier: Apache-2.0
"""Share of rows whose answer equals a correct text in all that a reader would not call a difference."""

from collections.abc import Collection

from finetune_trainer.scoring.text_comparison import normalize


def value(answer: str, accepted: Collection[str]) -> float:
    """Return 1 if the answer and a correct text are equal after `normalize`, otherwise 0."""
    return float(normalize(answer) in {normalize(text) for text in accepted})
