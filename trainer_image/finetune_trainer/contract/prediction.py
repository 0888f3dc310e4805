# SPDX-License-Identifier: Apache-2.0
"""What a run will take: device facts from the operator, and the prediction that preflight makes with them."""

from typing import Annotated, Final, Literal

from pydantic import Field

from finetune_trainer.contract.base import Contract, SharedPart

MAX_CHOSEN: Final = 6
"""Max number of sentences in `Prediction.chosen`."""

OnPredictedOutOfMemory = Literal["Refuse", "Warn"]
Verdict = Literal["Fits", "Tight", "TooLarge", "Unknown"]
"""Fits: below 0.9 of the device's memory. Tight: between 0.9 and 1.15. TooLarge: above 1.15 with every way to
need less memory applied. Unknown: the memory of the device is unknown."""


class DeviceFacts(SharedPart):
    """Properties of one device. A field is None if it is unknown."""

    product: Annotated[str | None, Field(max_length=63)] = None
    """Product name as in the node label `nvidia.com/gpu.product`."""
    memory_bytes: int | None = None
    """Memory of one device, in bytes."""
    peak_teraflops: float | None = None
    """Peak of dense bf16 matrix products, in 10^12 floating-point operations per second."""


class Prediction(Contract):
    """What training will take, from one fake step of the real config."""

    device_memory_bytes: int
    """Peak memory of one device, in bytes."""
    device_memory_available_bytes: int | None = None
    """Memory of one device, in bytes; None if it is unknown."""
    host_memory_bytes: int
    """Peak memory of one pod of train outside of its devices, in bytes."""
    weights_bytes: int | None = None
    """Size of the base model's weights as evaluation and serving load them, in bytes: for QLoRA in 4 bits."""
    state_bytes: int
    """Size of one saved resume state of the whole run, in bytes."""
    flops: float
    """Floating-point operations of all training steps on all devices."""
    seconds_low: float | None = None
    """Lower bound of the duration of all training steps, in seconds; None if the device's peak is unknown.

    Includes the trainings of a learning curve, unlike `flops`."""
    seconds_high: float | None = None
    """Upper bound of the same duration."""
    mfu: float | None = None
    """Model FLOPs utilization that the seconds assume: share of the device's peak."""
    mfu_assumed: bool = False
    """Whether `mfu` is an assumption instead of the median of finished runs."""
    verdict: Verdict = "Unknown"
    chosen: Annotated[tuple[str, ...], Field(max_length=MAX_CHOSEN)] = ()
    """Sentences that say which settings preflight chose to fit the device, and why."""
