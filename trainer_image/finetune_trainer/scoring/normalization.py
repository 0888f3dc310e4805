# SPDX-License-Identifier: Apache-2.0
"""The part of a text that a reader compares."""

import unicodedata


def normalize(text: str) -> str:
    """Return the text to compare.

    It has Unicode normalization form KC, in which full-width letters and digits are plain ones, folded case,
    one space for each run of white space, no white space around it, and no punctuation at its end. Text that
    is punctuation only keeps it.
    """
    # Case folding can leave characters that are not normalized.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(folded.split())
    end = len(words)
    while end and (words[end - 1] == " " or unicodedata.category(words[end - 1]).startswith("P")):
        end -= 1
    return words[:end] or words
