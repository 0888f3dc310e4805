# SPDX-License-Identifier: Apache-2.0
"""Queues and priorities of Kueue: what a ComputeProfile offers, and what an object chooses."""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.meta import Model, Name


class PerStage(Model):
    """Names per stage."""

    cpu: Annotated[
        Name | None, Field(description="Name for prepare, preflight and merge, which use no devices.")
    ] = None
    train: Annotated[Name | None, Field(description="Name for the train stage.")] = None
    evaluate: Annotated[
        Name | None, Field(description="Name for the evaluate stage, and for custom metrics after it.")
    ] = None


class PerWorkload(PerStage):
    """Names per stage and for endpoints."""

    serve: Annotated[Name | None, Field(description="Name for the pods of endpoints.")] = None


class Kueue(Model):
    """Queues and priorities in Kueue, and what objects may choose themselves."""

    queues: Annotated[
        PerWorkload | None,
        Field(
            description="LocalQueue of Kueue per stage, in the namespace of the object. Default: no queue."
        ),
    ] = None
    workload_priority_classes: Annotated[
        PerWorkload | None,
        Field(description="WorkloadPriorityClass of Kueue per stage. Default: none, which is priority 0."),
    ] = None
    allowed_queues: Annotated[
        tuple[Name, ...],
        Field(
            max_length=64,
            description="LocalQueues that objects may name in compute.queueName, in addition to those of"
            " queues. Empty: no others.",
        ),
    ] = ()
    allowed_workload_priority_classes: Annotated[
        tuple[Name, ...],
        Field(
            max_length=64,
            description="WorkloadPriorityClasses that objects may name in compute.workloadPriorityClass, in"
            " addition to those of workloadPriorityClasses. Empty: no others.",
        ),
    ] = ()


class QueueChoice(Model):
    """The queue and the priority that an object chooses."""

    queue_name: Annotated[
        Name | None,
        Field(
            description="LocalQueue of Kueue, in the namespace of the object, for its pods with devices. The"
            " ComputeProfile must allow it in kueue.allowedQueues. Default: that of kueue.queues of the"
            " ComputeProfile."
        ),
    ] = None
    workload_priority_class: Annotated[
        Name | None,
        Field(
            description="WorkloadPriorityClass of Kueue for its pods with devices. The ComputeProfile must"
            " allow it in kueue.allowedWorkloadPriorityClasses. Default: that of"
            " kueue.workloadPriorityClasses of the ComputeProfile."
        ),
    ] = None


NO_CHOICE: Final = QueueChoice()
