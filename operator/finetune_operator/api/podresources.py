# SPDX-License-Identifier: Apache-2.0
"""CPU, memory and storage of pods."""

import re
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


UNITS: Final = {
    unit: Fraction(base) ** power
    for base, first, units in (
        (1000, -3, ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")),
        (1024, 1, ("Ki", "Mi", "Gi", "Ti", "Pi", "Ei")),
    )
    for power, unit in enumerate(units, first)
}
"""Factors of the unit suffixes of Kubernetes' quantities, by
https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/."""
ANY_QUANTITY: Final = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(?:[eE]([+-]?[0-9]{1,3})|([numkMGTPE]?|[KMGTPE]i))", re.ASCII
)
MAX_QUANTITY_LENGTH: Final = 64
"""Max characters of a quantity. The API server writes at most 19 significant digits."""


def quantity_value(quantity: object) -> Fraction:
    """Value of a quantity of any Kubernetes object in its base unit: bytes, cores or devices.

    Args:
        quantity: text such as 500m, 16Gi or 1e-3, or a number.

    Raises:
        ValueError: it is not a quantity.
    """
    text = str(quantity)
    found = ANY_QUANTITY.fullmatch(text) if len(text) <= MAX_QUANTITY_LENGTH else None
    if found is None:
        raise ValueError(f"not a quantity: {text[:MAX_QUANTITY_LENGTH]}")
    number, exponent, unit = found.groups()
    return Fraction(number) * (UNITS[unit] if exponent is None else Fraction(10) ** int(exponent))


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
