# SPDX-License-Identifier: Apache-2.0
"""What preflight predicts about a run, and what the run took."""

from typing import Annotated

from pydantic import Field

from finetune_operator.api.meta import Model
from finetune_trainer.contract.prediction import MAX_CHOSEN, Verdict


class MeasuredTraining(Model):
    """What training took, to compare with the prediction."""

    device_memory_bytes: Annotated[
        int | None, Field(description="Peak memory of one device, in bytes, as in status.training.")
    ] = None
    seconds: Annotated[
        float | None,
        Field(
            description="Seconds of training, with validation and saving, without start and repeated work:"
            " tokens divided by tokens per second. Includes the trainings of a learning curve."
        ),
    ] = None
    cost: Annotated[
        float | None,
        Field(
            description="Price of the device time of the train stage, with start and repeated work, by"
            " cost.pricePerDeviceHour of the ComputeProfile."
        ),
    ] = None
    mfu: Annotated[
        float | None,
        Field(
            description="Model FLOPs utilization: the predicted floating-point operations of the steps made,"
            " divided by what the devices could compute in `seconds`. Absent: the peak of the device is"
            " unknown. The median of the last 20 runs of a ComputeProfile predicts the next one."
        ),
    ] = None


class Prediction(Model):
    """What training will take, as preflight predicts it from one fake step."""

    verdict: Annotated[
        Verdict,
        Field(
            description="Fits: the peak is below 0.9 of a device's memory. Tight: below 1.15. TooLarge: above"
            " it. Unknown: the memory of the devices is unknown."
        ),
    ] = "Unknown"
    device_memory_bytes: Annotated[int, Field(description="Peak memory of one device, in bytes.")]
    device_memory_available_bytes: Annotated[
        int | None, Field(description="Memory of one device, in bytes. Absent: unknown.")
    ] = None
    host_memory_bytes: Annotated[
        int, Field(description="Peak memory of one train pod outside of its devices, in bytes.")
    ]
    weights_bytes: Annotated[
        int | None,
        Field(
            description="Size of the base model's weights as evaluation loads them, in bytes: for QLoRA in 4"
            " bits. If one device does not hold them, evaluate pods request compute.devices. Absent: unknown."
        ),
    ] = None
    state_bytes: Annotated[int, Field(description="Size of one saved resume state, in bytes.")]
    flops: Annotated[float, Field(description="Floating-point operations of all steps on all devices.")]
    device: Annotated[
        str | None, Field(max_length=63, description="Product name of the devices. Absent: unknown.")
    ] = None
    peak_teraflops: Annotated[
        float | None,
        Field(
            description="Peak of one device in 10^12 floating-point operations per second. Absent: unknown."
        ),
    ] = None
    seconds_low: Annotated[
        int | None,
        Field(
            description="Lower bound of the seconds of training, without start, with those of a learning"
            " curve. Absent: the peak of the devices is unknown."
        ),
    ] = None
    seconds_high: Annotated[
        int | None, Field(description="Upper bound of the seconds of training, without start.")
    ] = None
    cost_low: Annotated[
        float | None,
        Field(
            description="Price of `secondsLow` on all devices, by cost.pricePerDeviceHour. Absent: no price."
        ),
    ] = None
    cost_high: Annotated[float | None, Field(description="Price of `secondsHigh` on all devices.")] = None
    currency: Annotated[str | None, Field(description="Currency of the costs.")] = None
    mfu: Annotated[
        float | None,
        Field(description="Model FLOPs utilization that the seconds assume, as a share of the peak."),
    ] = None
    mfu_assumed: Annotated[
        bool,
        Field(
            description="Whether mfu is an assumption. Otherwise it is the median of the last 20 runs of the"
            " ComputeProfile."
        ),
    ] = False
    chosen: Annotated[
        tuple[Annotated[str, Field(max_length=256)], ...],
        Field(max_length=MAX_CHOSEN, description="Settings that preflight chose to fit the device, and why."),
    ] = ()
    measured: Annotated[
        MeasuredTraining | None, Field(description="What training took. Absent until it has ended.")
    ] = None
