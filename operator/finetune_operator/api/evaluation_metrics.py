# SPDX-License-Identifier: Apache-2.0
"""Metrics of an evaluation: fields that hold a metric, and metrics that users define.

Rules and descriptions of the fields come from the contract's table. Users define Python functions, judges,
and tasks of general ability. Their names in gates are custom/NAME, judge/NAME and task/NAME.
"""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import (
    HTTP_URL,
    CELRule,
    Digest,
    Model,
    Name,
    SecretReference,
    base_url_advice,
    is_one_of,
    pattern_advice,
)
from finetune_trainer.contract.metrics import (
    CUSTOM,
    DEFAULT_METRICS,
    FAMILIES,
    JUDGE,
    METRIC_PATTERN,
    METRICS,
    TASK,
    metrics_where,
)
from finetune_trainer.contract.own_metrics import (
    MAX_CUSTOM_METRICS,
    MAX_JUDGES,
    MAX_TASKS,
    EvaluationTaskFields,
    JudgeFields,
)
from finetune_trainer.contract.vocabulary import join_names

OTHER_METRICS: Final = metrics_where(lambda info: not info.is_fraction)
LOWER_IS_BETTER: Final = metrics_where(lambda info: info.lower_is_better)
HIGHER_IS_BETTER: Final = metrics_where(lambda info: not info.lower_is_better)
PAIR_METRICS: Final = metrics_where(lambda info: "pairs" in info.needs)
PATTERN_METRICS: Final = metrics_where(lambda info: "pattern" in info.needs)


def is_in_family(expression: str, families: Iterable[str]) -> str:
    """CEL: the metric belongs to one of these families."""
    return " || ".join(f"{expression}.startsWith('{family}/')" for family in families)


FRACTION_ADVICE: Final = (
    f"bounds are fractions between 0 and 1, except of {join_names(OTHER_METRICS)}: write 0.8 for 80 %"
)
UNBOUNDED_FAMILIES: Final = tuple(family for family, info in FAMILIES.items() if not info.is_fraction)
NAMED_METRICS: Final = join_names(tuple(f"{family}/NAME" for family in FAMILIES), "or")
DESCRIPTION: Final = "; ".join(f"{metric}: {info.summary}" for metric, info in METRICS.items()) + "."

MetricName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=81,
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": f"{is_one_of('self', tuple(METRICS))} || {is_in_family('self', FAMILIES)}",
                    "message": "unknown metric: write"
                    f" {join_names(tuple(METRICS), 'or')}, or {NAMED_METRICS}",
                }
            ]
        },
    ),
]
"""A metric in a spec."""
ScoredMetric = Annotated[
    str,
    Field(
        min_length=1,
        max_length=81,
        pattern=METRIC_PATTERN,
        json_schema_extra=pattern_advice(
            METRIC_PATTERN, f"use the name of a metric, for example {DEFAULT_METRICS[0]} or custom/tone"
        ),
    ),
]
"""A metric in a status, possibly one that only a newer release knows."""


CUSTOM_NAME: Final = r"^[a-z0-9]([-a-z0-9_.]{0,38}[a-z0-9])?$"
CONFIG_MAP_KEY: Final = r"^[-._a-zA-Z0-9]+$"
FUNCTION: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"


def custom_name_field(description: str, example: str) -> Any:
    """The field of the name that the user gives a metric of a family, such as `custom/NAME`."""
    return Field(
        min_length=1,
        max_length=40,
        pattern=CUSTOM_NAME,
        description=description,
        json_schema_extra=pattern_advice(
            CUSTOM_NAME,
            "use lower-case letters, digits, '-', '_' and '.', with a letter or digit at both ends, for"
            f" example {example}",
        ),
    )


class ConfigMapKey(Model):
    """A key of a ConfigMap in the same namespace."""

    name: Annotated[Name, Field(description="Name of the ConfigMap.")]
    key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=CONFIG_MAP_KEY,
            description="Key whose value is the source.",
            json_schema_extra=pattern_advice(
                CONFIG_MAP_KEY,
                "a key may only have letters, digits, '-', '_' and '.': see kubectl get configmap",
            ),
        ),
    ]


class CustomMetric(Model):
    """A Python function that rates an answer. Its metric is `custom/` and the name."""

    name: Annotated[
        str, custom_name_field("Name of the metric. Results and gates call it custom/NAME.", "tone")
    ]
    config_map_ref: Annotated[
        ConfigMapKey,
        Field(
            description="Python source. Its SHA-256 is recorded before the first measurement; if it changes"
            " before the evaluation ends, the evaluation fails."
        ),
    ]
    function: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            pattern=FUNCTION,
            description="Function in the source: `def metric(row: dict, answer: str) -> float`. It gets a row"
            " of the split as prepared, and the answer of a model; a higher value is better.",
            json_schema_extra=pattern_advice(FUNCTION, "write the name of a Python function, such as metric"),
        ),
    ] = "metric"


class CustomMetricSource(Model):
    """Source of a metric of the user before the first measurement."""

    name: Annotated[str, Field(max_length=40, description="Name of the metric.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the source.")]


class EvaluationTask(EvaluationTaskFields, Model):
    """A task of lm-evaluation-harness. Its metric is `task/` and the name."""

    name: Annotated[
        str, custom_name_field("Name of the task. Results and gates call its metric task/NAME.", "science")
    ]
    config_map_ref: Annotated[
        ConfigMapKey,
        Field(
            description="Task file in YAML. The files of its rows, which dataset_kwargs.data_files names, are"
            " other keys of the same ConfigMap: JSON lines, also compressed with gzip. Their SHA-256 is"
            " recorded before the first measurement; if they change later, the evaluation fails."
        ),
    ]


class EvaluationTaskSource(Model):
    """Files of a task before the first measurement."""

    name: Annotated[str, Field(max_length=40, description="Name of the task.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the task file and the files of its rows.")]
    rows: Annotated[int, Field(ge=1, description="Number of rows that each model is measured on.")]


class Judge(JudgeFields, Model):
    """A model behind an OpenAI-compatible API that compares the answers of the tuned model with others. Its
    metric is `judge/` and the name."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "has(self.endpoint) != has(self.credentialsSecretRef)",
            "the address of a judge is written once: set endpoint for an API without credentials, or"
            " credentialsSecretRef with the address in the key endpoint of the Secret",
            "endpoint",
        ),
    )

    name: Annotated[
        str, custom_name_field(f"Name of the judge. Results and gates call its metric {JUDGE}/NAME.", "tone")
    ]
    endpoint: Annotated[
        str | None,
        Field(
            max_length=1024,
            pattern=HTTP_URL,
            description="Base URL of an OpenAI-compatible API that needs no credentials, for example"
            " http://vllm.models:8000/v1. Calls go to /chat/completions under it. Default: the key endpoint"
            " of the Secret.",
            json_schema_extra=base_url_advice(
                "write the base URL of the API without user, query and fragment, for example"
                " http://vllm.models:8000/v1",
            ),
        ),
    ] = None
    credentials_secret_ref: Annotated[
        SecretReference | None,
        Field(
            description="Secret with the base URL of the API in the key"
            " endpoint and its token in the key token. Default: calls without credentials."
        ),
    ] = None


JudgeList = Annotated[
    tuple[Judge, ...],
    Field(
        max_length=MAX_JUDGES,
        description="Judges of the answers, in addition to `metrics`. The value of a judge is the share of"
        " rows on which it prefers the answer of the tuned model, ties half; above 0.5 the tuned model is"
        " better. Rows of the split and the answers are sent to the endpoints. Default: none.",
    ),
]
CustomMetricList = Annotated[
    tuple[CustomMetric, ...],
    Field(
        max_length=MAX_CUSTOM_METRICS,
        description="Metrics of your own, measured in addition to `metrics`. Each is a Python function"
        " that runs in a pod without network, token and credentials. Needs a store on a claim, and"
        " allow.customCode of the evaluation's ComputeProfile. Default: none.",
    ),
]
TaskList = Annotated[
    tuple[EvaluationTask, ...],
    Field(
        max_length=MAX_TASKS,
        description="Tasks of lm-evaluation-harness that Tuned, Base and Live do in addition, to see"
        " whether the training cost general ability. Their files may have no code and name no remote"
        " data. Default: none.",
    ),
]
CustomMetricSources = Annotated[
    tuple[CustomMetricSource, ...] | None,
    Field(max_length=MAX_CUSTOM_METRICS, description="Sources of customMetrics."),
]
"""In a status."""
EvaluationTaskSources = Annotated[
    tuple[EvaluationTaskSource, ...] | None,
    Field(max_length=MAX_TASKS, description="Files of tasks."),
]
"""In a status."""


def own_metric_rules() -> tuple[CELRule, ...]:
    """Rules on a type with `customMetrics`, `judges`, `tasks` and `gates`: names are unique and gates know
    them."""
    rules = []
    for family, field, one in (
        (CUSTOM, "customMetrics", "metric"),
        (JUDGE, "judges", "judge"),
        (TASK, "tasks", "task"),
    ):
        rules += [
            CELRule(
                f"!has(self.{field}) || self.{field}.all(one, self.{field}.exists_one(other, other.name =="
                " one.name))",
                f"{field} names a {one} twice: name each {one} once",
                field,
            ),
            CELRule(
                f"self.gates.all(gate, !gate.metric.startsWith('{family}/') || has(self.{field}) &&"
                f" self.{field}.exists(own, gate.metric == '{family}/' + own.name))",
                f"a gate on {family}/NAME needs NAME in {field}: add it, or correct the name",
                "gates",
            ),
        ]
    return tuple(rules)
