"""Scores and verdicts of an evaluation, for the status of FineTuneJob and Checkpoint."""

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import Message, Model, Name
from finetune_operator.api.metricrules import ScoredMetric

MAX_SCORES: Final = 16

GateVerdict = Literal["Passed", "Failed", "Undecided"]
Verdict = Literal[GateVerdict, "NoGates"]
SubjectName = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[A-Z][A-Za-z]*$")]
"""A subject in a status, possibly one that only a newer release knows."""


class Score(Model):
    """Value of one metric for one model."""

    metric: Annotated[ScoredMetric, Field(description="Name of the metric.")]
    subject: Annotated[
        SubjectName,
        Field(
            description="Model that was measured. Tuned: the trained model. Base: its base model. Prompted:"
            " the base model with instructions and examples. Live: the champion of the model line."
        ),
    ]
    value: Annotated[float, Field(description="Value of the metric.")]
    rows: Annotated[int, Field(description="Number of rows that were measured.")]


class GateResult(Model):
    """Result of one gate."""

    metric: Annotated[ScoredMetric, Field(description="Metric of the gate.")]
    verdict: Annotated[
        GateVerdict,
        Field(
            description="Whether the gate passed. Undecided: a value that the gate needs was not measured."
        ),
    ]
    message: Annotated[Message, Field(description="Measured values and bounds.")]


class EvaluationStatus(Model):
    """Results of the evaluation."""

    checkpoint: Annotated[Name, Field(description="Checkpoint that was evaluated.")]
    split: Annotated[str, Field(description="Split that was evaluated.")] = "test"
    scores: Annotated[tuple[Score, ...], Field(max_length=MAX_SCORES, description="Measured values.")] = ()
    gates: Annotated[tuple[GateResult, ...], Field(max_length=16, description="Results of the gates.")] = ()
    verdict: Annotated[
        Verdict,
        Field(
            description="Result of all gates together. Passed: all gates passed. Failed: at least one"
            " failed. Undecided: none failed, and at least one is undecided. NoGates: the run has no gates."
        ),
    ]
    champion: Annotated[
        Name | None, Field(description="Champion of the model line at the time of the verdict.")
    ] = None
    untested_answers: Annotated[
        int | None,
        Field(
            ge=1,
            description="Number of distinct completions that occur in training rows and in no row of the"
            " split. The scores do not cover them. Absent: none or unknown.",
        ),
    ] = None
