# SPDX-License-Identifier: Apache-2.0
"""Scores and verdicts of an evaluation, for the status of FineTuneJob and Checkpoint."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_operator.api.meta import Digest, Message, Model, Name, pattern_advice
from finetune_operator.api.metricrules import ScoredMetric

MAX_SCORES: Final = 80
"""20 metrics of 4 models."""
MAX_FINDINGS: Final = 8

GateVerdict = Literal["Passed", "Failed", "Undecided", "NotApplicable"]
Verdict = Literal["Passed", "Failed", "Undecided", "NoGates"]
SUBJECT_PATTERN: Final = r"^[A-Z][A-Za-z]{0,31}$"
SubjectName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=32,
        pattern=SUBJECT_PATTERN,
        json_schema_extra=pattern_advice(
            SUBJECT_PATTERN, "use the name of a measured model, for example Tuned or Base"
        ),
    ),
]
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
    low: Annotated[
        float | None, Field(description="Lower end of the two-sided 95 % interval of the value.")
    ] = None
    high: Annotated[
        float | None, Field(description="Upper end of the two-sided 95 % interval of the value.")
    ] = None


class GateResult(Model):
    """Result of one gate. Bounds are one-sided at the confidence of the gate; absent without one."""

    metric: Annotated[ScoredMetric, Field(description="Metric of the gate.")]
    over: Annotated[SubjectName | None, Field(description="Model that the gate compares with.")] = None
    verdict: Annotated[
        GateVerdict,
        Field(
            description="Whether the gate passed. Undecided: a value that the gate needs was not measured, or"
            " the rows do not decide it at its confidence. NotApplicable: it compares with the champion, and"
            " the model line has no other one; it counts as passed."
        ),
    ]
    message: Annotated[Message, Field(description="Measured values and bounds.")]
    value: Annotated[float | None, Field(description="Value of the tuned model.")] = None
    low: Annotated[float | None, Field(description="Lower bound of the value.")] = None
    high: Annotated[float | None, Field(description="Upper bound of the value.")] = None
    gain: Annotated[
        float | None,
        Field(description="Gain over the model in `over`; positive if the tuned model is better."),
    ] = None
    gain_low: Annotated[float | None, Field(description="Lower bound of the gain.")] = None
    gain_high: Annotated[float | None, Field(description="Upper bound of the gain.")] = None
    confidence: Annotated[float | None, Field(description="Confidence level of the bounds.")] = None
    rows: Annotated[int | None, Field(description="Number of rows that were measured.")] = None
    more_rows: Annotated[
        int | None,
        Field(description="Estimated number of additional rows that would decide an undecided gate."),
    ] = None


class CheckFinding(Model):
    """What a check of the trained weights found."""

    check: Annotated[str, Field(max_length=63, description="Name of the check.")]
    veto: Annotated[bool, Field(description="Whether it blocks the promotion.")] = False
    message: Annotated[Message, Field(description="What was found and what to do next.")]


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
            " failed, or a check vetoes the promotion. Undecided: none failed, and at least one is undecided."
            " NoGates: the run has no gates."
        ),
    ]
    reason: Annotated[
        str | None,
        Field(
            max_length=64,
            description="Reason of a verdict that does not follow from the gates: Vetoed or"
            " ChampionKeepsChanging.",
        ),
    ] = None
    findings: Annotated[
        tuple[CheckFinding, ...] | None,
        Field(max_length=MAX_FINDINGS, description="What checks of the trained weights found."),
    ] = None
    source: Annotated[
        str | None,
        Field(
            max_length=63,
            description="Who measured it. Run: the run that made the Checkpoint. Otherwise the name of an"
            " Evaluation. Absent in the status of a run and of an Evaluation.",
        ),
    ] = None
    dataset_version: Annotated[
        Name | None, Field(description="DatasetVersion of the rows. Absent: that of the run.")
    ] = None
    dataset_digest: Annotated[Digest | None, Field(description="Digest of that DatasetVersion.")] = None
    settings_hash: Annotated[
        str | None,
        Field(
            max_length=16,
            description="Hash of the settings of the Evaluation. After a restore it takes over scores with an"
            " equal hash instead of measuring again.",
        ),
    ] = None
    measured_at: Annotated[
        datetime | None,
        Field(description="Time at which an Evaluation recorded the scores."),
    ] = None
    champion: Annotated[
        Name | None, Field(description="Champion of the model line at the time of the verdict.")
    ] = None
    live: Annotated[
        Name | None, Field(description="Checkpoint that was measured as Live. Absent: none was.")
    ] = None
    untested_answers: Annotated[
        int | None,
        Field(
            ge=1,
            description="Number of distinct completions that occur in training rows and in no row of the"
            " split. The scores do not cover them. Absent: none or unknown.",
        ),
    ] = None
    report_uri: Annotated[
        str | None,
        Field(
            max_length=1024,
            description="URI of the HTML page about the evaluation, in the store. The predictions are next"
            " to it.",
        ),
    ] = None
    answer_engine: Annotated[
        str | None,
        Field(
            max_length=128,
            description="Engine that generated the answers, with its version, such as VLLM 0.32.0. Absent:"
            " the engine Transformers of the trainer image, which also computes losses, checks and tasks.",
        ),
    ] = None


class ComparedChampion(Model):
    """Champion that an evaluation compares with."""

    checkpoint: Annotated[
        Name | None, Field(description="The champion. Absent: the model line has none.")
    ] = None
    digest: Annotated[Digest | None, Field(description="Digest of its weights.")] = None


class LiveComparison(ComparedChampion):
    """Champion that the evaluation compares with, while the run evaluates."""

    renewals: Annotated[
        int,
        Field(
            ge=0, description="Number of times that it was measured again because the champion had changed."
        ),
    ] = 0
