# SPDX-License-Identifier: Apache-2.0
"""The part of a text that a reader compares."""

import unicodedata


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
