# SPDX-License-Identifier: Apache-2.0
"""Detectors of text that should not be learned, and the selection of those that a text needs.

One pass over a text selects them: an RE2 set reads a text once, regardless of the number of expressions. RE2
has no lookaround, and its character classes are ASCII only. So its expressions match at least what a detector
finds, and possibly more.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Protocol

from finetune_trainer.data.row_problems import Code

try:
    import re2
except ImportError:
    # Wheels exist for Linux with glibc, macOS and Windows; elsewhere every detector runs on every text.
    re2 = None

Expressions = tuple[tuple[str, ...], ...]
"""Groups of expressions in RE2's syntax. A text with a finding matches all expressions of at least one."""

BEYOND_ASCII: Final = r"\x{80}-\x{10FFFF}"
LOOK_AHEAD: Final = re.compile(r"\(\?=[^()]*\)")
CLASSES: Final = {r"\w": rf"\w{BEYOND_ASCII}", r"\s": rf"[\s\x0b\x1c-\x1f{BEYOND_ASCII}]"}
"""RE2 counterparts of Python's character classes: letters inside brackets, white space outside."""
MAX_MEMORY_BYTES: Final = 16 << 20
"""Memory for the states of the automaton; when it is full, RE2 discards them."""
ALWAYS: Final = r"\A"
"""Matches every text, so an empty result means that RE2 failed; the anchor makes it cheap."""


class Prefilter:
    """Selects the detectors that may find something in a text."""

    def __init__(self, detectors: Sequence[Expressions]) -> None:
        expressions = tuple(dict.fromkeys(each for groups in detectors for group in groups for each in group))
        self._groups = [
            [{expressions.index(each) for each in group} for group in groups] for groups in detectors
        ]
        self._set = None if re2 is None else _set_of((*expressions, ALWAYS))

    def find(self, text: str) -> list[int]:
        """Numbers of the detectors, from 0; all detectors if RE2 is missing or failed."""
        # No finding contains surrogates.
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
    """An expression for texts that contain one of the words."""
    return f"(?{'i' if any_case else ''}:{'|'.join(map(re.escape, words))})"


def loosen(pattern: re.Pattern[str]) -> str:
    """An expression that matches wherever the pattern does, if it has no other classes than CLASSES."""
    expression = LOOK_AHEAD.sub("", pattern.pattern)
    for name, characters in CLASSES.items():
        expression = expression.replace(name, characters)
    return expression


def _set_of(expressions: Sequence[str]) -> "re2.Set":
    options = re2.Options()
    options.max_mem = MAX_MEMORY_BYTES
    options.log_errors = False
    result = re2.Set.SearchSet(options)
    for expression in expressions:
        result.Add(expression)
    result.Compile()
    return result


@dataclass(frozen=True, slots=True)
class DetectedSpan:
    """The span text[start:end]; `shown` is its partly masked form for messages."""

    start: int
    end: int
    shown: str


class Detector(Protocol):
    """Finds one kind of sensitive text."""

    code: ClassVar[Code]
    name: ClassVar[str]
    """Name with its article, for messages."""
    expected: ClassVar[str]
    fix: ClassVar[str]
    setting: ClassVar[str]
    """Field of a Dataset that sets what happens with a finding."""
    placeholder: ClassVar[str]

    @property
    def expressions(self) -> Expressions:
        """Expressions that match every text in which the detector finds something."""

    def may_find(self, text: str) -> bool:
        """Cheap check of a text that matches the expressions; False only if `find` would find nothing."""

    def find(self, text: str) -> Iterator[DetectedSpan]:
        """All spans in any order; they may overlap."""
