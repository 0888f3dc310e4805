# SPDX-License-Identifier: Apache-2.0
"""Analysis of a rollout: gates on what the pods of a new revision measure and answer, and its result.

Gates can also bound the values of Prometheus queries that the user writes.
"""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.evaluation_metrics import custom_name_field
from finetune_operator.api.meta import (
    HTTP_URL,
    CELRule,
    Message,
    Model,
    SecretReference,
    base_url_advice,
    is_none_of,
    is_one_of,
)
from finetune_trainer.contract.analysis import (
    ANALYSIS_METRICS,
    ANSWER_METRICS,
    DEFAULT_MIN_ROWS,
    LATENCIES,
    MAX_ANALYSIS_GATES,
    MAX_ANALYSIS_SECONDS,
    MAX_PROMETHEUS_QUERIES,
    PLACEHOLDERS,
    PROMETHEUS,
    SHARES,
    AnalysisFields,
    AnalysisFigureFields,
    AnalysisGateFields,
    AnalysisVerdict,
    PrometheusQueryFields,
    placeholder,
)
from finetune_trainer.contract.vocabulary import join_names

IS_QUERIED: Final = f"self.metric.startsWith('{PROMETHEUS}/')"
"""CEL expression of a gate: its metric is the value of a query."""
ONLY_PLACEHOLDERS: Final = rf"^([^{{]|\{{[^{{]|\{{\{{ ?({'|'.join(PLACEHOLDERS)}) ?\}}\}})*$"
"""Two opening braces occur in PromQL only as a placeholder."""
NAMES_REVISION: Final = r"\{\{ ?revision ?\}\}"


class PrometheusQuery(PrometheusQueryFields, Model):
    """Query whose value is a metric of a revision. The metric is `prometheus/` and the name."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            f"self.query.matches(r'{ONLY_PLACEHOLDERS}')",
            f"the query has an unknown placeholder: use one of {', '.join(map(placeholder, PLACEHOLDERS))}",
            "query",
        ),
    )

    name: Annotated[
        str,
        custom_name_field(
            f"Name of the query. Gates and figures call its metric {PROMETHEUS}/NAME.", "refusals"
        ),
    ]


class PrometheusSource(Model):
    """Prometheus, or a server with its API, whose values are metrics of an analysis."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.queries.all(one, self.queries.exists_one(other, other.name == one.name))",
            "queries has a name twice: name each query once",
            "queries",
        ),
    )

    address: Annotated[
        str,
        Field(
            max_length=1024,
            pattern=HTTP_URL,
            description="Base URL of the API of Prometheus, Thanos, Mimir or VictoriaMetrics, for example"
            " http://prometheus.monitoring:9090. Queries go to /api/v1/query under it, from the pod of the"
            " analysis.",
            json_schema_extra=base_url_advice(
                "write the base URL of the API without user, query and fragment, for example"
                " http://prometheus.monitoring:9090",
            ),
        ),
    ]
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret with token, or username and password, and"
            " caBundle for the address. Default: queries without credentials."
        ),
    ] = None
    queries: Annotated[
        tuple[PrometheusQuery, ...],
        Field(
            min_length=1,
            max_length=MAX_PROMETHEUS_QUERIES,
            description="Queries. Each needs a gate.",
        ),
    ]


QUERY_RULES: Final = (
    CELRule(
        f"self.gates.all(gate, !gate.metric.startsWith('{PROMETHEUS}/') || has(self.prometheus) &&"
        f" self.prometheus.queries.exists(query, gate.metric == '{PROMETHEUS}/' + query.name))",
        f"a gate on {PROMETHEUS}/NAME needs NAME in prometheus.queries: add it, or correct the name",
        "gates",
    ),
    CELRule(
        "!has(self.prometheus) || self.prometheus.queries.all(query,"
        f" self.gates.exists(gate, gate.metric == '{PROMETHEUS}/' + query.name))",
        f"a query that no gate names has no effect: add a gate on {PROMETHEUS}/NAME, or remove the query",
        "prometheus",
    ),
    CELRule(
        "!has(self.prometheus) || self.gates.all(gate,"
        " !has(gate.maxIncrease) && !has(gate.maxRatio) && !has(gate.maxDecrease)"
        f" || self.prometheus.queries.all(query, gate.metric != '{PROMETHEUS}/' + query.name"
        f" || query.query.matches(r'{NAMES_REVISION}')))",
        "a query without {{ revision }} has the same value for both revisions: add the placeholder, or use"
        " max or min in its gate",
        "prometheus",
    ),
)
"""Rules on a type with `prometheus` and `gates`."""


QUERY_METRIC: Final = f"{PROMETHEUS}/NAME"
"""Metrics of queries, in messages."""


class AnalysisGate(AnalysisGateFields, Model):
    """Bound on a metric that a new revision must meet.

    Set max, maxIncrease or maxRatio; for a metric of answers min or maxDecrease; for prometheus/NAME any.
    """

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.max) || has(self.maxIncrease) || has(self.maxRatio) || has(self.min)"
            " || has(self.maxDecrease)",
            "a gate needs a bound: add max, maxIncrease or maxRatio, for example max: 0.05; for a metric of"
            " answers min or maxDecrease",
        ),
        CELRule(
            f"{is_none_of('self.metric', ANSWER_METRICS)}"
            " || !has(self.max) && !has(self.maxIncrease) && !has(self.maxRatio) && !has(self.quantile)",
            f"{join_names(ANSWER_METRICS)} have lower bounds: use min or maxDecrease",
        ),
        CELRule(
            f"!has(self.min) && !has(self.maxDecrease) || {IS_QUERIED}"
            f" || {is_one_of('self.metric', ANSWER_METRICS)}",
            f"min and maxDecrease are for {join_names((*ANSWER_METRICS, QUERY_METRIC))}: use max, "
            "maxIncrease or"
            " maxRatio",
        ),
        CELRule(
            f"!has(self.maxRatio) || {IS_QUERIED}"
            f" || {is_one_of('self.metric', (*LATENCIES, *ANSWER_METRICS))}",
            f"maxRatio is for latencies and {QUERY_METRIC}: use maxIncrease",
            "maxRatio",
        ),
        CELRule(
            f"!has(self.maxIncrease) || {is_none_of('self.metric', LATENCIES)}",
            f"maxIncrease is for error_rate, shed_rate, queue_depth and {QUERY_METRIC}: use maxRatio, for"
            " example 1.5",
            "maxIncrease",
        ),
        CELRule(
            f"!has(self.quantile) || {is_one_of('self.metric', (*LATENCIES, *ANSWER_METRICS))}",
            "quantile is for latencies: remove it",
            "quantile",
        ),
        CELRule(
            f"{is_none_of('self.metric', SHARES)} || (!has(self.max) || self.max <= 1.0)"
            " && (!has(self.maxIncrease) || self.maxIncrease <= 1.0)",
            f"{join_names(SHARES)} are shares between 0 and 1: write 5 % as 0.05",
        ),
        CELRule(
            f"{IS_QUERIED} || (!has(self.min) || self.min <= 1.0)"
            " && (!has(self.maxDecrease) || self.maxDecrease <= 1.0)",
            "scores of answers are between 0 and 1: write 80 % as 0.8",
        ),
    )

    metric: Annotated[
        str,
        Field(
            min_length=1,
            max_length=64,
            description=AnalysisGateFields.model_fields["metric"].description,
            json_schema_extra={
                "x-kubernetes-validations": [
                    {
                        "rule": f"{is_one_of('self', ANALYSIS_METRICS)} || self.startsWith('{PROMETHEUS}/')",
                        "message": "unknown metric of a rollout: write"
                        f" {join_names((*ANALYSIS_METRICS, QUERY_METRIC), 'or')}. Other metrics of an "
                        "evaluation"
                        " need more than the texts of a row, or PyTorch",
                    }
                ]
            },
        ),
    ]


class RolloutProbe(Model):
    """Requests of the analysis itself: test rows of the DatasetVersions of the models' Checkpoints.

    The rows are those of the stable revision's Checkpoint, so that wrong rows cannot justify the model that
    learned them. For a model that the stable revision does not serve they are those of its own Checkpoint.
    """

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "!has(self.minRows) || self.minRows <= self.requests",
            "minRows is greater than requests: lower it, or raise requests",
            "minRows",
        ),
    )

    requests: Annotated[
        int,
        Field(
            ge=1,
            le=10000,
            description="Number of requests to each of both revisions, which all models share equally.",
        ),
    ] = 100
    min_rows: Annotated[
        int | None,
        Field(
            ge=1,
            le=10000,
            description="Number of rows that each model must answer before a gate on answers passes or fails."
            f" Default: {DEFAULT_MIN_ROWS}.",
        ),
    ] = None


class RolloutAnalysis(AnalysisFields, Model):
    """Analysis of a new revision in the steps of a canary with `analysis`, and in its bake."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.durationSeconds <= self.maxDurationSeconds",
            "durationSeconds is greater than maxDurationSeconds: lower it, or raise maxDurationSeconds",
            "durationSeconds",
        ),
        CELRule(
            f"has(self.probe) || !self.gates.exists(gate, {is_one_of('gate.metric', ANSWER_METRICS)})",
            f"a gate on {join_names(ANSWER_METRICS, 'or')} needs answers: add probe, for example"
            " probe: {requests: 200}",
        ),
        *QUERY_RULES,
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
            description="Requests that the analysis sends to the pods of both revisions: from the start if a"
            " gate is on answers, otherwise if it would be inconclusive after maxDurationSeconds. They count"
            " like others. Default: none, so a person decides."
        ),
    ] = None
    prometheus: Annotated[
        PrometheusSource | None,
        Field(
            description=f"Prometheus with queries that gates on {QUERY_METRIC} bound. The other metrics"
            " are read from the pods, with or without it. Default: none."
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
