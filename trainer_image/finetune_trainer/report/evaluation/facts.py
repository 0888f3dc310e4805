# SPDX-License-Identifier: Apache-2.0
"""Everything that the report of an evaluation states, as plain data.

Rows have the answers of all models, how each went, and the order in which people read them. Judges have their
win rates, and the figures that show how far to trust them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final, Literal

from finetune_trainer.report.document import Document, camel, showable

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownJudge:
    """One judge. Rows without a verdict are those with a reply that could not be read."""

    metric: str
    against: str
    model: str
    endpoint: str
    prompt: str
    """System turn of each call."""
    prompt_digest: str
    replies: str
    """File with the replies."""
    win_rate: float | None
    """None if the judge has none."""
    low: float | None = None
    """Bounds of the interval at 95 % confidence; None if there is none."""
    high: float | None = None
    rows: int
    """Rows of the sample."""
    rows_in_split: int
    won: int
    tied: int
    lost: int
    same: int
    """Ties because the answers are equal, without a call."""
    calls: int
    unreadable: int
    """Calls without a verdict."""
    flipped: int
    """Rows whose better answer changed with the order."""
    longer: int
    """Won and lost rows whose better answer is the longer one."""


def judge_document(judge: ShownJudge) -> Document:
    """A judge in JSON types, with the shares that show its faults; null where there are no rows."""
    compared = judge.won + judge.tied + judge.lost - judge.same
    decided = judge.won + judge.lost
    return {
        **{camel(name): value for name, value in asdict(judge).items()},
        "prompt": showable(judge.prompt),
        "positionBias": judge.flipped / compared if compared else None,
        "longerPreferred": judge.longer / decided if decided else None,
    }


BUILT_IN_ENGINE: Final = "Transformers"
"""Name of the trainer as the engine of answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownScore:
    """One metric of one model, over all rows."""

    metric: str
    subject: str
    value: float
    rows: int
    low: float | None = None
    """Bounds of the interval at 95 % confidence; None if there is none."""
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGain:
    """By how much the tuned model is better than another one, over the same rows."""

    metric: str
    over: str
    gain: float
    low: float | None = None
    """Bounds of the interval at 95 % confidence; None if there is none."""
    high: float | None = None


ShownVerdict = Literal["Failed", "Undecided", "Later", "NotApplicable", "Passed"]
"""The verdict of a gate, the worst first."""
VERDICTS: Final[Mapping[ShownVerdict, str]] = {
    "Failed": "✗ failed",
    "Undecided": "undecided",
    # A stage after the evaluation measures its metric.
    "Later": "measured later",
    # It compares with the champion of a model line that has none.
    "NotApplicable": "does not apply: there is no champion",
    "Passed": "✓ passed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGate:
    """What a gate asks for, and what the rows say about it."""

    metric: str
    min: float | None = None
    max: float | None = None
    min_gain: float | None = None
    over: str | None = None
    confidence: float | None = None
    value: float | None = None
    """Value of the tuned model; None if it was not measured."""
    low: float | None = None
    """One-sided bounds at `confidence`; None without."""
    high: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    more_rows: int | None = None
    """Estimated number of additional rows that would decide the gate."""
    undecided: str = ""
    """Why there is no bound, as a sentence."""
    without_value: ShownVerdict = "Undecided"
    """The verdict if a value or gain is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownFinding:
    """What a check of the trained weights found."""

    check: str
    veto: bool
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownPrompt:
    """Text before each row for the model Prompted."""

    system_prompt: str
    examples: Sequence[tuple[int, Sequence[tuple[str, str]]]]
    """Numbers of training rows from 1, each with the role and text of its turns."""
    first: str
    """The whole prompt of the first row, as the model reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTask:
    """A task of general ability: what was measured, so that others can repeat it."""

    name: str
    task: str
    """Name in the task file."""
    version: str
    """As its author gave it; empty without one."""
    metric: str
    num_fewshot: int
    rows: int
    digest: str
    """Of the task file and the files of its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSlice:
    """The rows with one value of a kept column."""

    value: str | None
    """None: the rows without a value."""
    rows: int
    scores: Sequence[ShownScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFacts:
    """Everything that the report of an evaluation states."""

    run: str
    checkpoint: str
    base_model: str
    dataset: str
    split: str
    subjects: Sequence[str]
    metrics: Sequence[MetricProperties]
    scores: Sequence[ShownScore]
    gains: Sequence[ShownGain]
    rows: Sequence[AnsweredRow]
    predictions_uri: str
    answer_engine: str = BUILT_IN_ENGINE
    """Engine that generated the answers, with its version unless it is the trainer."""
    slice_by: str | None = None
    """Kept column of the slices."""
    slices: Sequence[ScoreSlice] = ()
    """Slices of the rows, the largest first."""
    labels: Mapping[str, Sequence[tuple[str, str | None]]] = field(default_factory=dict)
    """By subject, the expected and the answered label of each row of a classification."""
    tasks: Sequence[ShownTask] = ()
    gates: Sequence[ShownGate] = ()
    findings: Sequence[ShownFinding] = ()
    prompt: ShownPrompt | None = None
    """Prompt of the model Prompted, if it was measured."""
    learning_curve: Document | None = None
    """The learning curve of the run's training report, with `lossUnit`."""
    judges: Sequence[ShownJudge] = ()
    unmeasured: Mapping[str, str] = field(default_factory=dict)
    """Models that could not be measured, and why."""
