# SPDX-License-Identifier: Apache-2.0
"""Queries of the user to a Prometheus, which an analysis evaluates for both revisions."""

from typing import Annotated, Final

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract, SharedPart
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
