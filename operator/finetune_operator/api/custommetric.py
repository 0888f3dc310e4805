"""Metrics of the user: Python functions in ConfigMaps."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Digest, Model, Name


class ConfigMapKey(Model):
    """A key of a ConfigMap in the namespace of the run."""

    name: Annotated[Name, Field(description="Name of the ConfigMap.")]
    key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[-._a-zA-Z0-9]+$",
            description="Key whose value is the source.",
        ),
    ]


class CustomMetric(Model):
    """A Python function that rates an answer. Its metric is `custom/` and the name."""

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=40,
            pattern=r"^[a-z0-9]([-a-z0-9_.]{0,38}[a-z0-9])?$",
            description="Name of the metric. Results and gates call it custom/NAME.",
        ),
    ]
    config_map_ref: Annotated[
        ConfigMapKey,
        Field(
            description="Python source. Its SHA-256 is recorded when the run starts; if it changes before the"
            " evaluation ends, the run fails."
        ),
    ]
    function: Annotated[
        str,
        Field(
            min_length=1,
            max_length=63,
            pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
            description="Function in the source: `def metric(row: dict, answer: str) -> float`. It gets a row"
            " of the test split as prepared, and the answer of a model; a higher value is better.",
        ),
    ] = "metric"


class CustomMetricSource(Model):
    """Source of a metric of the user when the run started."""

    name: Annotated[str, Field(max_length=40, description="Name of the metric.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the source.")]
