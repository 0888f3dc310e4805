# SPDX-License-Identifier: Apache-2.0
"""Compute of an object: devices, queue and priority in Kueue, time limits.

A ComputeProfile has the queues and priorities that it offers, and an object those that it chooses.
"""

from typing import Annotated, Final

from pydantic import Field

from finetune_operator.api.meta import Model, Name
from finetune_operator.api.pod_resources import MAX_DEVICES
from finetune_trainer.contract.method import Sharding
from finetune_trainer.contract.prediction import OnPredictedOutOfMemory


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


DeviceCount = Annotated[int, Field(ge=1, le=MAX_DEVICES)]
"""Number of devices of one pod."""
StepTimeoutSeconds = Annotated[int, Field(ge=60, le=86400)]
"""Seconds without progress after which a pod is ended as hung."""


class Compute(QueueChoice):
    """ComputeProfile, devices and time limits of the run."""

    profile: Annotated[
        Name | None,
        Field(description="ComputeProfile of the run. Default: the cluster's default ComputeProfile."),
    ] = None
    devices: Annotated[
        DeviceCount,
        Field(
            description="Number of devices per pod of the train stage, at most accelerator.maxPerPod"
            " of the ComputeProfile. Each accelerator has its own process, which computes its share of every"
            " step; CPU cores are threads of one process. An evaluate pod requests one device, or as many as"
            " a train pod if preflight predicts that one does not hold the weights.",
        ),
    ] = 1
    nodes: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="Number of pods that train together, each with `devices` devices. Training starts"
            " when all of them run. If one is lost, all of them resume from the last saved state.",
        ),
    ] = 1
    step_timeout_seconds: Annotated[
        StepTimeoutSeconds | None,
        Field(
            description="Seconds without a finished batch, validation batch or saved state after which a"
            " train pod is ended as hung, and without a finished batch or generated token after which an"
            " evaluate pod is. The next pod resumes from what was saved. Default: 1800.",
        ),
    ] = None
    on_predicted_out_of_memory: Annotated[
        OnPredictedOutOfMemory | None,
        Field(
            description="What happens if preflight predicts that training needs more than 1.15 times the"
            " memory of a device, with the smallest batch and gradient checkpointing. Refuse: the run fails"
            " before a device is requested. Warn: it trains, and an event has the figures. No effect if the"
            " memory of the devices is unknown. Default: Refuse.",
        ),
    ] = None
    sharding: Annotated[
        Sharding | None,
        Field(
            description="Whether the processes of the train stage shard the weights of the model. Sharded:"
            " each process has a part of every layer, and gathers a whole layer only while it computes with"
            " it, so that a model can be larger than the memory of a device; an adapter itself is not"
            " sharded. Replicated: each process has the whole model, which is faster if it fits. Auto: Full"
            " is sharded; the other methods are replicated, or sharded if preflight predicts that a replica"
            " does not fit. No effect with one process. Default: Auto.",
        ),
    ] = None
    max_run_seconds: Annotated[
        int | None,
        Field(
            ge=60,
            le=31536000,
            description="Max seconds that the train stage uses devices, over all its attempts; time in a"
            " queue or suspended does not count. At the limit, the run saves its state and stops. It"
            " continues when the limit is raised. limits.runSeconds of the ComputeProfile limits the run"
            " as well. Mutable. Default: no limit except that of the ComputeProfile.",
        ),
    ] = None
