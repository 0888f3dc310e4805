"""Analysis of a rollout: gates on what the pods of a new revision measure."""

from typing import Annotated, ClassVar

from pydantic import Field

from finetune_operator.api.cel import is_none_of, is_one_of
from finetune_operator.api.meta import CELRule, Message, Model
from finetune_trainer.contract.analysis import (
    LATENCIES,
    MAX_ANALYSIS_GATES,
    MAX_ANALYSIS_SECONDS,
    AnalysisFields,
    AnalysisFigureFields,
    AnalysisGateFields,
    AnalysisVerdict,
)


class AnalysisGate(AnalysisGateFields, Model):
    """Bound on a metric that a new revision must meet. Set max, maxIncrease or maxRatio."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.max) || has(self.maxIncrease) || has(self.maxRatio)",
            "a gate needs a bound: add max, maxIncrease or maxRatio, for example max: 0.05",
        ),
        CELRule(
            f"!has(self.maxRatio) || {is_one_of('self.metric', LATENCIES)}",
            "maxRatio is for latencies: use maxIncrease",
            "maxRatio",
        ),
        CELRule(
            f"!has(self.maxIncrease) || {is_none_of('self.metric', LATENCIES)}",
            "maxIncrease is for error_rate and queue_depth: use maxRatio, for example 1.5",
            "maxIncrease",
        ),
        CELRule(
            f"!has(self.quantile) || {is_one_of('self.metric', LATENCIES)}",
            "quantile is for latencies: remove it",
            "quantile",
        ),
        CELRule(
            "self.metric != 'error_rate' || (!has(self.max) || self.max <= 1.0)"
            " && (!has(self.maxIncrease) || self.maxIncrease <= 1.0)",
            "error_rate is a share between 0 and 1: write 5 % as 0.05",
        ),
    )


class RolloutProbe(Model):
    """Requests of the analysis itself: test rows of the DatasetVersions of the revision's Checkpoints."""

    requests: Annotated[
        int, Field(ge=1, le=10000, description="Number of requests to each of both revisions.")
    ] = 100


class RolloutAnalysis(AnalysisFields, Model):
    """Analysis of a new revision in the steps of a canary with `analysis`, and in its bake."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.durationSeconds <= self.maxDurationSeconds",
            "durationSeconds is greater than maxDurationSeconds: lower it, or raise maxDurationSeconds",
            "durationSeconds",
        ),
    )

    gates: Annotated[
        tuple[AnalysisGate, ...],
        Field(
            min_length=1,
            max_length=MAX_ANALYSIS_GATES,
            description="Gates of a new revision. If one fails, the revision is rolled back.",
        ),
    ]
    probe: Annotated[
        RolloutProbe | None,
        Field(
            description="Requests that the analysis sends to the pods of both revisions if it would be"
            " inconclusive after maxDurationSeconds. They count like others. Default: none, so a person"
            " decides."
        ),
    ] = None


class StepAnalysis(Model):
    """Analysis of the new revision with the weight of the steps before."""

    duration_seconds: Annotated[
        int | None,
        Field(
            ge=10,
            le=MAX_ANALYSIS_SECONDS,
            description="Min seconds of the measurement. Default: strategy.analysis.durationSeconds.",
        ),
    ] = None


class AnalysisFigureStatus(AnalysisFigureFields, Model):
    """Figure of one gate."""


class RevisionAnalysis(Model):
    """Result of the last analysis of a revision."""

    step: Annotated[
        int | None,
        Field(ge=0, le=100, description="Index, from 0, of the step. Absent: it was measured in its bake."),
    ] = None
    verdict: Annotated[
        AnalysisVerdict,
        Field(
            description="Fail: a gate failed. Pass: all have passed. Inconclusive: too few requests, figures"
            " that show neither, or an analysis that could not run."
        ),
    ]
    requests: Annotated[int, Field(ge=0, description="Number of requests of the revision.")] = 0
    stable_requests: Annotated[int, Field(ge=0, description="Number of requests of the stable revision.")] = 0
    message: Annotated[Message, Field(description="The figures, or why there are none.")] = ""
    figures: Annotated[
        tuple[AnalysisFigureStatus, ...],
        Field(max_length=MAX_ANALYSIS_GATES, description="Figure of each gate."),
    ] = ()
