# SPDX-License-Identifier: Apache-2.0
"""Interface of detectors, which find spans of text that should not be learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from finetune_trainer.data.checks.prefilter import Expressions
from finetune_trainer.data.rowproblems import Code


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
