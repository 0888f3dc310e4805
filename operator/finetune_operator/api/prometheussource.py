# SPDX-License-Identifier: Apache-2.0
"""A Prometheus as a source of an analysis: queries of the user whose values gates can bound."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import HTTP_URL, CELRule, Model, SecretReference, base_url_advice
from finetune_operator.api.ownmetrics import own_name
from finetune_trainer.contract.analysis import (
    MAX_PROMETHEUS_QUERIES,
    PLACEHOLDERS,
    PROMETHEUS,
    PrometheusQueryFields,
    placeholder,
)

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
        str, own_name(f"Name of the query. Gates and figures call its metric {PROMETHEUS}/NAME.", "refusals")
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
