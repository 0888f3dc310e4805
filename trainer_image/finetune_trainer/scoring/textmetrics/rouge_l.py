# SPDX-License-Identifier: Apache-2.0
"""ROUGE-L: F1 of the longest common subsequence of words (Lin, 2004), without stemming.

Its length is counted in the bits of one number (Hyyrö, "Bit-parallel LCS-length computation revisited",
2004): the tables of libraries take minutes and gigabytes for answers of thousands of words.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Final

IDEOGRAPHS: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
"""Kana and Han characters, as the inside of a character class."""
WORD: Final = re.compile(rf"[{IDEOGRAPHS}]|[^\W_{IDEOGRAPHS}]+")


def value(answer: str, accepted: Collection[str]) -> float:
    """Return the F1 of an answer and the most similar correct text; 0 if there is none."""
    words = _words(answer)
    # Rounded as the result of TorchMetrics, which is float32.
    return round(max((_f1(words, _words(text)) for text in accepted), default=0.0), 6)


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the number of words of the longest common subsequence."""
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    # A bit is 0 where the subsequence up to this word of `first` is longer than up to the word before it.
    every = (1 << len(first)) - 1
    rest = every
    for word in second:
        matching = rest & places.get(word, 0)
        rest = (rest + matching | rest - matching) & every
    return len(first) - rest.bit_count()


def _f1(answer: Sequence[str], correct: Sequence[str]) -> float:
    total = len(answer) + len(correct)
    return 2 * longest_common_subsequence(answer, correct) / total if total else 0.0


def _words(text: str) -> list[str]:
    return WORD.findall(text.lower())
