# SPDX-License-Identifier: Apache-2.0
"""Metrics of the user: Python functions in ConfigMaps."""

from typing import Annotated, Any, Final

from pydantic import Field

from finetune_operator.api.meta import Digest, Model, Name, pattern_advice

CUSTOM_NAME: Final = r"^[a-z0-9]([-a-z0-9_.]{0,38}[a-z0-9])?$"
CONFIG_MAP_KEY: Final = r"^[-._a-zA-Z0-9]+$"
FUNCTION: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"


def own_name(description: str, example: str) -> Any:
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
    """A key of a ConfigMap in the namespace of the run."""

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

    name: Annotated[str, own_name("Name of the metric. Results and gates call it custom/NAME.", "tone")]
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
            pattern=FUNCTION,
            description="Function in the source: `def metric(row: dict, answer: str) -> float`. It gets a row"
            " of the test split as prepared, and the answer of a model; a higher value is better.",
            json_schema_extra=pattern_advice(FUNCTION, "write the name of a Python function, such as metric"),
        ),
    ] = "metric"


class CustomMetricSource(Model):
    """Source of a metric of the user when the run started."""

    name: Annotated[str, Field(max_length=40, description="Name of the metric.")]
    digest: Annotated[Digest, Field(description="SHA-256 of the source.")]
