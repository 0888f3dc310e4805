# SPDX-License-Identifier: Apache-2.0
"""Everything that the report of an evaluation states, as plain data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from finetune_trainer.report.document import Document
from finetune_trainer.report.evaluation.judges import ShownJudge
from finetune_trainer.report.evaluation.rows import AnsweredRow, MetricProperties

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGate:
    """What a gate asks for, and what the rows say about it. The operator decides."""

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
