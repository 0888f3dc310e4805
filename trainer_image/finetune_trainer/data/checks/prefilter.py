"""One pass over a text for all detectors: which of them are worth a look.

By a set of expressions of RE2, which reads a text once, however many expressions there are. RE2 cannot look
around a match, and its classes of characters are those of ASCII. So its expressions are looser than what a
detector looks for, and never stricter: a detector has the last word.
"""

import re
from collections.abc import Sequence
from typing import Final

try:
    import re2
except ImportError:
    # There are wheels for Linux with glibc, macOS and Windows; elsewhere every detector looks at every text.
    re2 = None

Expressions = tuple[tuple[str, ...], ...]
"""In RE2's syntax: a text in which something is found fits all of one group."""

BEYOND_ASCII: Final = r"\x{80}-\x{10FFFF}"
LOOK_AHEAD: Final = re.compile(r"\(\?=[^()]*\)")
CLASSES: Final = {r"\w": rf"\w{BEYOND_ASCII}", r"\s": rf"[\s\x0b\x1c-\x1f{BEYOND_ASCII}]"}
"""What stands for Python's classes of characters: of letters inside of brackets, of white space outside."""
MAX_MEMORY_BYTES: Final = 16 << 20
"""Bytes for the states of the automaton; beyond that it begins anew."""
ALWAYS: Final = r"\A"
"""Fits every text, so that no answer means that RE2 has failed; only at its beginning, which costs least."""


class Prefilter:
    """Tells which of several detectors may find something in a text."""

    def __init__(self, detectors: Sequence[Expressions]) -> None:
        every = tuple(dict.fromkeys(each for groups in detectors for group in groups for each in group))
        self._groups = [[{every.index(each) for each in group} for group in groups] for groups in detectors]
        self._set = None if re2 is None else _set_of((*every, ALWAYS))

    def find(self, text: str) -> list[int]:
        """The numbers of the detectors, from 0; of all where nothing is known."""
        # Halves of characters are in nothing that is looked for.
        matched = None if self._set is None else self._set.Match(text.encode(errors="replace"))
        if matched is None:
            return list(range(len(self._groups)))
        if len(matched) == 1:
            return []
        return [
            number
            for number, groups in enumerate(self._groups)
            if any(group.issubset(matched) for group in groups)
        ]


def any_of(words: Sequence[str], *, any_case: bool = False) -> str:
    """An expression for texts that have one of some words."""
    return f"(?{'i' if any_case else ''}:{'|'.join(map(re.escape, words))})"


def loosened(pattern: re.Pattern[str]) -> str:
    """An expression that fits wherever a pattern does, which has no classes but those of CLASSES."""
    expression = LOOK_AHEAD.sub("", pattern.pattern)
    for name, characters in CLASSES.items():
        expression = expression.replace(name, characters)
    return expression


def _set_of(expressions: Sequence[str]) -> "re2.Set":
    options = re2.Options()
    options.max_mem = MAX_MEMORY_BYTES
    options.log_errors = False
    found = re2.Set.SearchSet(options)
    for expression in expressions:
        found.Add(expression)
    found.Compile()
    return found
