"""ROUGE-L: F1 of the longest common subsequence of words (Lin, 2004), by TorchMetrics."""

import re
from collections.abc import Collection
from typing import Final

IDEOGRAPHS: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
"""Kana and Han characters, as the inside of a character class."""
WORD: Final = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+")


def value(answer: str, accepted: Collection[str]) -> float:
    """Return the F1 of an answer and the most similar correct text; 0 if there is none. No stemming."""
    from torchmetrics.functional.text import rouge_score

    if not accepted:
        return 0.0
    scores = rouge_score(
        answer, sorted(accepted), rouge_keys="rougeL", normalizer=str.lower, tokenizer=WORD.findall
    )
    # The result is float32: without rounding, 0.8 would miss a gate of 0.8.
    return round(float(scores["rougeL_fmeasure"]), 6)
