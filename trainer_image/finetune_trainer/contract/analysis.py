# SPDX-License-Identifier: Apache-2.0
"""Analysis of a rollout: gates on the metrics and answers of pods, and on the user's Prometheus queries.

A query is evaluated for both revisions, the new one and the one that serves. The module also has the figures
of the gates, which the result of `analyze` reports.
"""

from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, SharedPart
from finetune_trainer.contract.metrics import METRICS, Metric, metrics_where
from finetune_trainer.contract.references import SecretMount

PROMETHEUS: Final = "prometheus"
"""Family of the metrics of queries: prometheus/NAME."""
MAX_PROMETHEUS_QUERIES: Final = 8
MAX_QUERY_CHARACTERS: Final = 2048
PLACEHOLDERS: Final = {
    "revision": "name of the revision, which docs/prometheus.yaml and the monitors of the chart put on its"
    " series as label `revision`",
    "endpoint": "name of the InferenceDeployment",
    "namespace": "its namespace",
    "interval": "duration from the start of the measurement, for example 120s",
}
"""Names that a query can contain as `{{ NAME }}`, with their values."""


def placeholder(name: str) -> str:
    """A placeholder as a query contains it."""
    return f"{{{{ {name} }}}}"


class PrometheusQueryFields(BaseModel):
    """Query whose value is a metric of a revision."""

    query: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_QUERY_CHARACTERS,
            description="PromQL expression with one value, evaluated for each revision. Placeholders: "
            + "; ".join(f"{placeholder(name)}, {value}" for name, value in PLACEHOLDERS.items())
            + ". The log of the analysis has the queries, with their values.",
        ),
    ]


class PrometheusQuery(PrometheusQueryFields, SharedPart):
    """Query whose value is a metric of a revision."""

    name: str

    @property
    def metric(self) -> str:
        """Its name in gates and figures."""
        return f"{PROMETHEUS}/{self.name}"


class PrometheusSource(Contract):
    """A Prometheus, and its queries with the values of their placeholders."""

    address: str
    """URL under which `/api/v1/query` is."""
    credentials: SecretMount | None = None
    endpoint: str
    namespace: str
    revision: str
    stable_revision: str
    queries: tuple[PrometheusQuery, ...]


def is_queried(metric: str) -> bool:
    """Whether the value of a metric is that of a query."""
    return metric.startswith(f"{PROMETHEUS}/")


ServingMetric = Literal[
    "error_rate", "shed_rate", "time_to_first_token_seconds", "inter_token_latency_seconds", "queue_depth"
]
ANSWER_METRICS: Final[tuple[Metric, ...]] = metrics_where(lambda info: info.in_rollouts)
"""Metrics of the answers to probes."""
ANALYSIS_METRICS: Final[tuple[str, ...]] = (*get_args(ServingMetric), *ANSWER_METRICS)
SHARES: Final[tuple[ServingMetric, ...]] = ("error_rate", "shed_rate")
"""Metrics that are shares of requests."""
LATENCIES: Final[tuple[ServingMetric, ...]] = ("time_to_first_token_seconds", "inter_token_latency_seconds")
"""Metrics that are quantiles of a histogram."""
AnalysisVerdict = Literal["Pass", "Fail", "Inconclusive"]
DEFAULT_QUANTILE: Final = 0.95
MAX_ANALYSIS_SECONDS: Final = 86400
MAX_ANALYSIS_GATES: Final = 8
DEFAULT_MIN_ROWS: Final = 20
"""Rows that each model must answer before a gate on answers decides."""


class AnalysisGateFields(BaseModel):
    """Bound on a metric that a new revision must meet."""

    metric: Annotated[
        str,
        Field(
            description="Metric that the bounds apply to. error_rate: share of requests that end with status"
            " 500 or above; requests with status 4xx do not count. shed_rate: share of requests that are"
            " refused with 429 because of load; other requests with status 4xx do not count."
            " time_to_first_token_seconds, inter_token_latency_seconds: a quantile of the latency."
            " queue_depth: mean number of waiting requests per replica. For each model, of its answers to the"
            " rows of `probe`: "
            + "; ".join(f"{metric}: {METRICS[metric].summary}" for metric in ANSWER_METRICS)
            + f". {PROMETHEUS}/NAME: value of query NAME of `prometheus`."
        ),
    ]
    quantile: Annotated[
        float | None,
        Field(ge=0.5, le=0.99, description="Quantile of a latency. Default: 0.95."),
    ] = None
    max: Annotated[float | None, Field(ge=0, description="Upper bound of the value, inclusive.")] = None
    max_increase: Annotated[
        float | None,
        Field(
            ge=0,
            description="Upper bound of the value minus that of the stable revision, inclusive. For"
            f" error_rate, shed_rate, queue_depth and {PROMETHEUS}/NAME.",
        ),
    ] = None
    max_ratio: Annotated[
        float | None,
        Field(
            ge=1,
            description="Upper bound of the value divided by that of the stable revision, inclusive. For"
            f" latencies and {PROMETHEUS}/NAME. A stable value of 0 or less is inconclusive.",
        ),
    ] = None
    min: Annotated[
        float | None,
        Field(
            ge=0,
            description="Lower bound of the value of each model, inclusive, for metrics of answers. Lower"
            f" bound of the value for {PROMETHEUS}/NAME.",
        ),
    ] = None
    max_decrease: Annotated[
        float | None,
        Field(
            ge=0,
            description="Upper bound, inclusive, of the value of the stable revision minus that of the new"
            " one. For metrics of answers: of each model, for the same rows; a model that the stable revision"
            f" does not serve meets it. For {PROMETHEUS}/NAME too.",
        ),
    ] = None
    confidence: Annotated[
        float,
        Field(
            gt=0.5,
            lt=1,
            description="Confidence level at which a figure must miss its bound to fail the gate. Has no"
            f" effect on queue_depth and {PROMETHEUS}/NAME, whose value decides.",
        ),
    ] = 0.95


class AnalysisGateBound(AnalysisGateFields, SharedPart):
    """Bound on a metric that a new revision must meet."""


class AnalysisFields(BaseModel):
    """How long, and with how many requests, a new revision is measured."""

    duration_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=MAX_ANALYSIS_SECONDS,
            description="Min seconds of a measurement before it can pass. It can fail earlier.",
        ),
    ] = 60
    max_duration_seconds: Annotated[
        int,
        Field(
            ge=10,
            le=MAX_ANALYSIS_SECONDS,
            description="Seconds after which a measurement that neither passed nor failed is inconclusive.",
        ),
    ] = 600
    min_requests: Annotated[
        int,
        Field(
            ge=1,
            le=1000000,
            description="Min number of requests of the new revision and, for comparisons, of the stable one."
            " A measurement with fewer does not pass.",
        ),
    ] = 50


class AnalysisFigureFields(BaseModel):
    """Figure of one gate."""

    metric: Annotated[str, Field(max_length=64, description="Metric of the gate.")]
    quantile: Annotated[float | None, Field(description="Quantile of a latency.")] = None
    model: Annotated[
        str | None,
        Field(max_length=63, description="Model whose answers decided: the worst one of the endpoint."),
    ] = None
    rows: Annotated[
        int | None, Field(description="Number of rows that the model of the new revision answered.")
    ] = None
    value: Annotated[
        float | None,
        Field(description="Value of the new revision. Absent: its pods or Prometheus have not reported it."),
    ] = None
    low: Annotated[
        float | None,
        Field(
            description="Lower bound of the value at the confidence of the gate. Absent for queue_depth and"
            f" {PROMETHEUS}/NAME."
        ),
    ] = None
    high: Annotated[
        float | None,
        Field(
            description="Upper bound of the value at the confidence of the gate. Absent for queue_depth and"
            f" {PROMETHEUS}/NAME, and for a quantile that the requests do not limit."
        ),
    ] = None
    stable: Annotated[
        float | None, Field(description="Value of the stable revision. Absent: the gate does not need it.")
    ] = None
    verdict: Annotated[
        AnalysisVerdict,
        Field(
            description="Pass: enough requests, and the value meets the bounds. Fail: the requests show that"
            " it does not. Inconclusive: neither."
        ),
    ]


class AnalysisFigure(AnalysisFigureFields, Contract):
    """Figure of one gate."""


class AnalyzeResult(Contract):
    """Result of `analyze`."""

    verdict: AnalysisVerdict
    """Fail: a gate failed. Pass: all have passed."""
    figures: tuple[AnalysisFigure, ...] = ()
    """One per gate."""
    requests: int = 0
    """Requests of the new revision that ended while it was measured."""
    stable_requests: int = 0
    seconds: float = 0
    problem: str = ""
    """Why pods or queries could not be read, as a sentence for the user; empty if all could."""
