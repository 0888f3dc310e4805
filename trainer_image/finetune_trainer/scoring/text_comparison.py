# SPDX-License-Identifier: Apache-2.0
"""Texts as a reader compares them: their normalized form, and the label that an answer names."""

import unicodedata
from collections import Counter
from collections.abc import Iterable


def normalize(text: str) -> str:
    """Return the text to compare.

    It has Unicode normalization form KC, in which full-width letters and digits are plain ones, folded case,
    one space for each run of white space, no white space around it, and no punctuation at its end. Text that
    is punctuation only keeps it. A bracket that closes another one is not punctuation at the end: f(x) is not
    f(x.
    """
    # Case folding can leave characters that are not normalized.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(folded.split())
    closing = _closing(words)
    end = len(words)
    while end and end - 1 not in closing:
        if words[end - 1] != " " and not unicodedata.category(words[end - 1]).startswith("P"):
            break
        end -= 1
    return words[:end] or words


def _closing(text: str) -> set[int]:
    """Positions of the brackets that close one before them."""
    found, is_open = set(), 0
    for at, character in enumerate(text):
        # Most text has no brackets.
        if character.isalnum():
            continue
        kind = unicodedata.category(character)
        if kind == "Ps":
            is_open += 1
        elif kind == "Pe" and is_open:
            is_open -= 1
            found.add(at)
    return found


class LabelSet:
    """The labels, in order."""

    def __init__(self, labels: Iterable[str]) -> None:
        self.names: tuple[str, ...] = tuple(labels)
        self._exact = {name: index for index, name in enumerate(self.names)}
        normalized = [normalize(name) for name in self.names]
        times = Counter(normalized)
        self._normalized = {text: index for index, text in enumerate(normalized) if times[text] == 1}

    def __len__(self) -> int:
        return len(self.names)

    def index(self, answer: str) -> int | None:
        """Index of the label that the whole answer names; None if it names none.

        The answer equals the label, or does so after `normalize` if no two labels do.
        """
        exact = self._exact.get(answer)
        return self._normalized.get(normalize(answer)) if exact is None else exact
