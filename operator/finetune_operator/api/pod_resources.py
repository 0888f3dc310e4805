# SPDX-License-Identifier: Apache-2.0
"""Resources of pods: CPU, memory, storage, and devices with what one of them can do."""

import re
from fractions import Fraction
from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.labels import LabelValue
from finetune_operator.api.meta import CELRule, Model, pattern_advice

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


CPU: Final = "cpu"
"""Resource of devices that are CPU cores."""
CUDA_RESOURCES: Final = "nvidia.com/"
"""Begin of the names of devices that PyTorch reaches through CUDA, such as nvidia.com/mig-1g.10gb."""

MAX_DEVICES: Final = 64
"""Limit of the devices of a pod. A label or a request above it is not of the operator."""


class Accelerator(Model):
    """Devices that train, evaluate and serve pods request, and the properties of one of them."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        CELRule(
            "self.resource == 'cpu'"
            " || self.resource.matches(r'^[a-z0-9][-.a-z0-9]*/[A-Za-z0-9][-_.A-Za-z0-9]*$')",
            "accelerator.resource must be cpu or an extended resource with its domain, for example"
            " nvidia.com/gpu",
            "resource",
        ),
        CELRule(
            "self.resource != 'cpu' || !(has(self.product) || has(self.memory) || has(self.peakTeraflops))",
            "accelerator.product, memory and peakTeraflops describe a card, but accelerator.resource is cpu:"
            " remove them, or set accelerator.resource to the resource of the card",
        ),
        CELRule(
            "!has(self.memory) || !quantity(self.memory).isLessThan(quantity('1Gi'))",
            "accelerator.memory is the memory of one device: write at least 1Gi, for example 80Gi",
            "memory",
        ),
    )

    resource: Annotated[
        str,
        Field(
            min_length=1,
            max_length=128,
            description="Extended resource such as nvidia.com/gpu, or cpu. With cpu, a device is one CPU"
            " core.",
        ),
    ] = "nvidia.com/gpu"
    product: Annotated[
        LabelValue | None,
        Field(
            description="Product name as in the node label nvidia.com/gpu.product, such as"
            " NVIDIA-H100-80GB-HBM3, from which preflight predicts whether a run fits and how long it takes."
            " docs/devices.md lists the known ones. Default: the value of that label in nodeSelector of the"
            " train pods."
        ),
    ] = None
    memory: Annotated[
        Quantity | None,
        Field(description="Memory of one device, such as 80Gi. Default: that of the known product."),
    ] = None
    peak_teraflops: Annotated[
        float | None,
        Field(
            gt=0,
            le=100000,
            description="Peak of dense bf16 matrix products of one device, in 10^12 floating-point operations"
            " per second. Default: that of the known product.",
        ),
    ] = None
    max_per_pod: Annotated[
        int, Field(ge=1, le=MAX_DEVICES, description="Max number of devices per pod (compute.devices).")
    ] = 8
