# SPDX-License-Identifier: Apache-2.0
"""Devices of a ComputeProfile: what pods request, and what one device can do."""

from typing import Annotated, ClassVar, Final

from pydantic import Field

from finetune_operator.api.meta import CELRule, Model, pattern_advice
from finetune_operator.api.podresources import Quantity

CPU: Final = "cpu"
"""Resource of devices that are CPU cores."""
CUDA_RESOURCES: Final = "nvidia.com/"
"""Begin of the names of devices that PyTorch reaches through CUDA, such as nvidia.com/mig-1g.10gb."""

MAX_DEVICES: Final = 64
"""Limit of the devices of a pod. A label or a request above it is not of the operator."""

LABEL_VALUE: Final = r"^([A-Za-z0-9]([-_.A-Za-z0-9]*[A-Za-z0-9])?)?$"

LabelValue = Annotated[
    str,
    Field(
        max_length=63,
        pattern=LABEL_VALUE,
        json_schema_extra=pattern_advice(
            LABEL_VALUE,
            "a label value may only have letters, digits, '-', '_' and '.', for example NVIDIA-A100",
        ),
    ),
]


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
            " docs/training.md lists the known ones. Default: the value of that label in nodeSelector of the"
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
