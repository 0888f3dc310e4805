# SPDX-License-Identifier: Apache-2.0
"""Status of stages: device time requested, used and lost, its price, and retries.

Retries succeed once the store or its credentials are repaired.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from finetune_operator.api.meta import Model, Name
from finetune_trainer.contract.vocabulary import Stage

LostCause = Literal["Waiting", "Preemption", "Failure", "BadData", "Cancelled", "Unknown"]
LOST_CAUSES: Final[Mapping[LostCause, str]] = {
    "Waiting": "pods held devices before their container or their last peer started",
    "Preemption": "training was repeated after a pod was preempted, evicted, drained or deleted",
    "Failure": "training was repeated after a pod failed, or the stage failed",
    "BadData": "the stage failed because of its data, its settings or its base model",
    "Cancelled": "the run was cancelled before the stage had a result",
    "Unknown": "training was repeated after an end of a pod that the operator did not observe",
}
"""Why device time was lost. Labels of metrics have the same values."""
PodEndCause = Literal["Preemption", "Failure", "PeerLost"]
MAX_ENDED_PODS: Final = 16


class LostDeviceTime(Model):
    """Device time that contributed to no result, by cause."""

    cause: Annotated[
        LostCause,
        Field(description=". ".join(f"{cause}: {meaning}" for cause, meaning in LOST_CAUSES.items()) + "."),
    ]
    device_seconds: Annotated[float, Field(description="Device seconds lost by this cause.")]


LostDeviceTimes = Annotated[
    tuple[LostDeviceTime, ...] | None,
    Field(
        max_length=len(get_args(LostCause)),
        description="Device time that contributed to no result. No device second has two causes.",
    ),
]


class StageTimes(Model):
    """Times of a stage, over all its pods.

    Requested = `queuedDeviceSeconds` + `startingDeviceSeconds` + `deviceSeconds`. Held =
    `startingDeviceSeconds` + `deviceSeconds`.
    """

    name: Annotated[Stage, Field(description="Name of the stage.")]
    profile: Annotated[Name | None, Field(description="ComputeProfile of the stage.")] = None
    queued_seconds: Annotated[
        float, Field(description="Seconds from the creation of the Job to the start of its first container.")
    ] = 0
    seconds: Annotated[float, Field(description="Seconds in which at least one container ran.")] = 0
    queued_device_seconds: Annotated[
        float | None,
        Field(
            description="Device seconds for which pods waited for a node: the time until each was scheduled,"
            " times its devices. The first pods wait from the creation of the Job, or the admission by its"
            " queue."
        ),
    ] = None
    starting_device_seconds: Annotated[
        float | None,
        Field(
            description="Device seconds from the scheduling of each pod to the start of its container, for"
            " example to pull the image. Not included in deviceSeconds and cost."
        ),
    ] = None
    device_seconds: Annotated[
        float,
        Field(
            description="Device seconds: the running time of each container, times the devices of its pod."
        ),
    ] = 0
    settled_device_seconds: Annotated[
        float | None, Field(description="Device seconds of the measurements that an Evaluation has recorded.")
    ] = None
    lost: LostDeviceTimes = None


class StageStatus(StageTimes):
    """Times of one finished stage."""


class EndedPod(Model):
    """End of a pod that did not succeed."""

    pod: Annotated[str, Field(max_length=64, description="UID of the pod.")]
    at: Annotated[datetime, Field(description="Time of its end.")]
    cause: Annotated[
        PodEndCause, Field(description="Cause of its end. PeerLost: another pod of the run ended first.")
    ]


class StageUsage(StageTimes):
    """Time that an unfinished stage has used so far, over all its pods, including pods before a
    suspension."""

    until: Annotated[datetime, Field(description="Time up to which usage is counted.")]
    ended: Annotated[
        tuple[EndedPod, ...] | None,
        Field(max_length=MAX_ENDED_PODS, description="Last pods that ended and did not succeed."),
    ] = None


class RecordedCost(Model):
    """Device time that was used until a time, and its price."""

    device_seconds: Annotated[float, Field(description="Device seconds of all stages.")] = 0
    amount: Annotated[
        float | None,
        Field(
            description="Price of the device time by cost.pricePerDeviceHour of the ComputeProfiles. Device"
            " time on a profile without a price, or with another currency than the first price, is not"
            " included."
        ),
    ] = None
    currency: Annotated[str | None, Field(description="Currency of the amount.")] = None


class Cost(RecordedCost):
    """Device time that the run has used, and its price."""

    lost: LostDeviceTimes = None


class RetryStatus(Model):
    """Consecutive failures of a stage that the operator retries. The wait before the next attempt grows with
    their number. Absent: none."""

    stage: Annotated[Stage, Field(description="Stage that failed.")]
    failures: Annotated[
        int,
        Field(
            ge=1,
            description="Number of consecutive failures, including failed checks of the store; with gaveBack,"
            " of times that devices were given back.",
        ),
    ]
    last_failure_at: Annotated[datetime, Field(description="Time at which the last attempt ended.")]
    gave_back: Annotated[
        bool | None,
        Field(
            description="True if the stage did not fail: only some of its pods had devices, so it released"
            " them for an older run."
        ),
    ] = None
    reading: Annotated[
        bool | None,
        Field(description="True if the stage succeeded and the failed attempts were to read its result."),
    ] = None
