# SPDX-License-Identifier: Apache-2.0
"""What training will take: the prediction of preflight."""

from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field

from finetune_trainer.contract.base import Contract

MAX_CHOSEN: Final = 6
"""Max number of sentences in `Prediction.chosen`."""

OnPredictedOutOfMemory = Literal["Refuse", "Warn"]
Verdict = Literal["Fits", "Tight", "TooLarge", "Unknown"]
"""Fits: below 0.9 of the device's memory. Tight: between 0.9 and 1.15. TooLarge: above 1.15 with every way to
need less memory applied. Unknown: the memory of the device is unknown."""


class PredictionFields(BaseModel):
    """What training will need, from one fake step of the real config."""

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


class Prediction(PredictionFields, Contract):
    """What training will take, as the trainer predicts it without prices."""

    seconds_low: float | None = None
    """Lower bound of the duration of all training steps, in seconds; None if the device's peak is unknown.

    Includes the trainings of a learning curve, unlike `flops`."""
    seconds_high: float | None = None
    """Upper bound of the same duration."""
    mfu: float | None = None
    """Model FLOPs utilization that the seconds assume: share of the device's peak."""
    mfu_assumed: bool = False
    """Whether `mfu` is an assumption instead of the median of finished runs."""
    chosen: Annotated[tuple[str, ...], Field(max_length=MAX_CHOSEN)] = ()
    """Sentences that say which settings preflight chose to fit the device, and why."""
