"""What every detector gives: the places in a text that should not be learned."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from finetune_trainer.data.checks.prefilter import Expressions
from finetune_trainer.data.rowproblems import Code


@dataclass(frozen=True, slots=True)
class DetectedSpan:
    """text[start:end]; `shown` is what a message may show of it, never all of it."""

    start: int
    end: int
    shown: str


class Detector(Protocol):
    """Looks for one kind."""

    code: ClassVar[Code]
    name: ClassVar[str]
    """With its article."""
    expected: ClassVar[str]
    fix: ClassVar[str]
    setting: ClassVar[str]
    """The field of a Dataset that says what to do with what is found."""
    placeholder: ClassVar[str]

    @property
    def expressions(self) -> Expressions:
        """What every text fits in which it finds something."""

    def may_find(self, text: str) -> bool:
        """Whether it is worth a look, once a text fits the expressions: never wrongly False, and cheap."""

    def find(self, text: str) -> Iterator[DetectedSpan]:
        """All of them, in no order; they may overlap."""
