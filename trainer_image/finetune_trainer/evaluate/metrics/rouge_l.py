"""ROUGE-L: F1 of the longest common subsequence of words (Lin, 2004), by the package rouge-score."""

import re
from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

IDEOGRAPHS: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
"""Kana and Han characters, as the inside of a character class."""
WORD: Final = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+")


class Words:
    """The tokenizer: runs of letters and digits in lower case, and each character of Chinese and Japanese.

    It equals rouge-score's own tokenizer for ASCII text. That one drops all other letters.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return WORD.findall(text.lower())


def value(answer: str, accepted: Collection[str]) -> float:
    """Return the F1 of an answer and the most similar correct text; 0 if there is none. No stemming."""
    if not accepted:
        return 0.0
    return float(_scorer().score_multi(sorted(accepted), answer)["rougeL"].fmeasure)


@cache
def _scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=Words())
