# SPDX-License-Identifier: Apache-2.0
"""Rows with the answers of all models: which row went how, and the order in which people read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Outcome = Literal["better", "worse", "same", "wrong", "truncated"]
OUTCOMES: Final[Mapping[Outcome, str]] = {
    "worse": "worse than {over}",
    "better": "better than {over}",
    "same": "same as {over}",
    "wrong": "wrong",
    "truncated": "truncated",
}
"""What a row can be, in the order of the page, with its description."""
TUNED: Final = "Tuned"
"""Subject that the page is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricProperties:
    """What the page must know about a metric."""

    name: str
    description: str
    lower_is_better: bool = False
    is_fraction: bool = True
    """Whether its values are between 0 and 1."""
    is_zero_or_one: bool = False
    """Whether the value of each row is 0 or 1: right or wrong."""

    def gain(self, value: float, over: float) -> float:
        """Improvement of a value over another one; negative if it is worse."""
        return over - value if self.lower_is_better else value - over

    @property
    def marks_wrong_rows(self) -> bool:
        """Whether a row with the value 0 is wrong."""
        return self.is_zero_or_one and not self.lower_is_better


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectAnswer:
    """What one model answered to one row."""

    text: str | None = None
    """None if no metric needed an answer."""
    tokens: int | None = None
    finish_reason: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Value of each metric in which the row counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRow:
    """What one judge said about one row."""

    metric: str
    against: str
    verdict: Literal["won", "tied", "lost"]
    """Of the tuned model."""
    reason: str
    """In the judge's words; empty if it gave none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweredRow:
    """One row of the split with the answers of all models."""

    row: int
    """Number of the row in its split, from 1."""
    turns: Sequence[tuple[str, str]]
    """Role and text of each turn of the input."""
    accepted: Sequence[str]
    """Texts that count as correct."""
    answers: Mapping[str, SubjectAnswer]
    """By subject."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Values of the kept columns of the source."""
    judged: Sequence[JudgedRow] = ()

    def value(self, metric: str, subject: str = TUNED) -> float | None:
        """The row's value of a metric; None if it was not measured."""
        answer = self.answers.get(subject)
        return None if answer is None else answer.metrics.get(metric)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowJudgement:
    """How rows are compared: by which metric, with which model."""

    deciding: MetricProperties
    """Metric that says which of two answers is better."""
    over: str | None
    """Model to compare with; None if only one was measured."""
    marking: MetricProperties | None
    """Metric that says which answers are wrong; None if no measured metric does."""

    def outcomes(self, row: AnsweredRow) -> tuple[Outcome, ...]:
        """How the row went, in the order of OUTCOMES."""
        gain = None if self.over is None else self._gain(row, self.over)
        answer = row.answers.get(TUNED)
        found: dict[Outcome, bool] = {
            "worse": gain is not None and gain < 0,
            "better": gain is not None and gain > 0,
            "same": gain == 0,
            "wrong": self._is_wrong(row, TUNED),
            "truncated": answer is not None and answer.finish_reason == "length",
        }
        return tuple(outcome for outcome in OUTCOMES if found[outcome])

    def worst_first(self, rows: Sequence[AnsweredRow]) -> list[AnsweredRow]:
        """The rows in the order in which people should read them.

        First the rows that the tuned model answers wrong and another one right; then by how much it is
        worse than the best of the others, then by its own value, then by number.
        """
        return sorted(rows, key=self._badness)

    def _badness(self, row: AnsweredRow) -> tuple[bool, float, float, int]:
        others = [subject for subject in row.answers if subject != TUNED]
        lost = self._is_wrong(row, TUNED) and any(self._is_right(row, other) for other in others)
        gains = [gain for other in others if (gain := self._gain(row, other)) is not None]
        own = row.value(self.deciding.name)
        goodness = 0.0 if own is None else self.deciding.gain(own, 0.0)
        return not lost, min(gains, default=0.0), goodness, row.row

    def _gain(self, row: AnsweredRow, over: str) -> float | None:
        own, other = row.value(self.deciding.name), row.value(self.deciding.name, over)
        return None if own is None or other is None else self.deciding.gain(own, other)

    def _is_wrong(self, row: AnsweredRow, subject: str) -> bool:
        return self.marking is not None and row.value(self.marking.name, subject) == 0

    def _is_right(self, row: AnsweredRow, subject: str) -> bool:
        return self.marking is not None and row.value(self.marking.name, subject) == 1
