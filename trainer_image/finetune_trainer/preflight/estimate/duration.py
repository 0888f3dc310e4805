# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a run, and how long devices take for them."""

from collections.abc import Iterable
from typing import Final

from finetune_trainer.contract.prediction import DeviceFacts
from finetune_trainer.preflight.estimate.fakestep import StepMeasure, StepShape

ASSUMED_MFU: Final = 0.35
"""Model FLOPs utilization of a profile without a finished run."""
ASSUMED_RANGE: Final = (0.25, 0.45)
"""Range of the utilizations that are usual for training language models of 1B and more."""
CAUSAL_SHARE: Final = 0.5
"""Share of attention that causal kernels compute."""
TERA: Final = 1e12


def run_flops(step: StepMeasure, shape: StepShape, lengths: Iterable[int], epochs: float) -> float:
    """Operations of all training steps on all devices; recomputed activations count.

    Matrix products grow with the tokens, attention with the square of each row's tokens.

    Args:
        step: what was measured.
        shape: the shape of the measured step.
        lengths: tokens of each training row, after truncation.
        epochs: number of passes over these rows, the last one possibly a part.
    """
    per_token = step.matmul_flops / (shape.rows * shape.length)
    per_square = CAUSAL_SHARE * step.attention_flops / (shape.rows * shape.length**2)
    return epochs * sum(per_token * length + per_square * length**2 for length in lengths)


def seconds_range(
    flops: float, device: DeviceFacts | None, devices: int, mfu: float | None
) -> tuple[float, float] | None:
    """Shortest and longest expected duration in seconds; None if the peak of a device is unknown.

    A measured utilization gives one number, an assumed one a range.
    """
    if device is None or device.peak_teraflops is None:
        return None
    at_peak = flops / (device.peak_teraflops * TERA * devices)
    low, high = (mfu, mfu) if mfu is not None else ASSUMED_RANGE
    return at_peak / high, at_peak / low
