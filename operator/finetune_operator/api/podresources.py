# SPDX-License-Identifier: Apache-2.0
"""CPU, memory and storage of pods."""

from fractions import Fraction
from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.meta import Model, pattern_advice

QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"

Quantity = Annotated[
    str,
    Field(
        min_length=1,
        max_length=32,
        pattern=QUANTITY,
        json_schema_extra=pattern_advice(
            QUANTITY, "write a Kubernetes quantity: a number and a unit, for example 500m, 2 or 16Gi"
        ),
    ),
]


UNITS: Final = {"": Fraction(1), "m": Fraction(1, 1000)} | {
    unit: Fraction(base**power)
    for base, units in ((1000, ("k", "M", "G", "T")), (1024, ("Ki", "Mi", "Gi", "Ti")))
    for power, unit in enumerate(units, 1)
}
"""Factors of the unit suffixes of `Quantity`."""


def quantity_value(quantity: str) -> Fraction:
    """Value of a `Quantity` in its base unit: bytes or cores."""
    unit = quantity.lstrip("0123456789.")
    return Fraction(quantity.removesuffix(unit)) * UNITS[unit]


class PodResources(Model):
    """Resource requests of one pod. Memory and ephemeral storage are also limited to the request; CPU is
    not."""

    cpu: Annotated[Quantity, Field(description="CPU request.")]
    memory: Annotated[Quantity, Field(description="Memory request and limit.")]
    ephemeral_storage: Annotated[
        Quantity | None,
        Field(
            description="Request and limit of ephemeral storage on the node, for models and for data that"
            " the pod reads from a bucket or uploads to one. Default: that of the namespace's LimitRange."
        ),
    ] = None

    @property
    def limited(self) -> dict[str, str]:
        """Resources whose limit equals the request, by their names in Kubernetes."""
        storage = {"ephemeral-storage": self.ephemeral_storage} if self.ephemeral_storage else {}
        return {"memory": self.memory, **storage}


class StageResources(Model):
    """CPU, memory and ephemeral storage of the pod of each stage, in addition to devices. Default: the
    operator's defaults."""

    prepare: PodResources | None = None
    preflight: PodResources | None = None
    train: PodResources | None = None
    evaluate: PodResources | None = None
    serve: PodResources | None = None
    merge: Annotated[
        PodResources | None,
        Field(
            description="For `models[].merge` of endpoints. The memory must hold the base model in bfloat16,"
            " and a quarter more."
        ),
    ] = None
