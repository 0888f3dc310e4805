# SPDX-License-Identifier: Apache-2.0
"""Figures of a training run: speed, utilization, and memory and time compared with their predictions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetune_trainer.contract.accelerators import GIBIBYTE
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.contract.results import PreflightResult, TrainResult
from tests.gpu import model_flops
from tests.gpu.errors import GPUCheckFailed
from tests.gpu.scene import GPUFigures, Scene, device_facts
from tests.gpu.shapes import SHAPES

WARM_UP_STEPS: Final = 3
"""Steps without a figure: kernels are compiled in them."""
MAX_MEMORY_ERROR: Final = 0.1
"""Limit for the difference of the predicted peak, relative to the measured one: a step beyond it fails."""
MAX_SECONDS_ERROR: Final = 0.25
"""The same for the predicted duration, beyond its range: a warning."""


@dataclass(frozen=True)
class Rows:
    """The model and the rows of a run, for the operations that it needs."""

    model: str
    """Name of its shape."""
    mean_context: float
    """Tokens that a token attends to, on average."""


def even(scene: Scene, model: str, tokens: int) -> Rows:
    """Rows of one length."""
    return Rows(scene.size(model), tokens / 2)


def spread(scene: Scene, model: str, shortest: int, longest: int) -> Rows:
    """Rows of random lengths in a range, each as likely."""
    lengths = range(shortest, longest + 1)
    return Rows(scene.size(model), sum(length * length for length in lengths) / 2 / sum(lengths))


def seconds_per_step(times: Sequence[float]) -> float:
    """Mean time of an optimizer step after the warm-up, given the time after each step.

    Raises GPUCheckFailed if there are too few steps.
    """
    counted = times[min(WARM_UP_STEPS, max(0, len(times) - 2)) :]
    if len(counted) < 2:
        raise GPUCheckFailed(f"{len(times)} optimizer steps are too few to measure speed")
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def read_times(file: Path) -> list[float]:
    """The times that a process of `tests.gpu.stage_process` wrote."""
    return [float(line) for line in file.read_text().splitlines()]


def measured(
    scene: Scene,
    found: PreflightResult,
    trained: TrainResult,
    *,
    method: Method | None = None,
    rows: Rows | None = None,
    times: Path | None = None,
) -> GPUFigures:
    """Speed and memory of a run, compared with what preflight predicted.

    Args:
        scene: the step.
        found: the result of preflight.
        trained: the result of the run.
        method: with `rows`, the method, for the utilization of the device.
        rows: the model and rows of a run that learns from completions.
        times: the file with the times of optimizer steps; None for the mean speed of the run.

    Raises:
        GPUCheckFailed: the predicted memory of a GPU is wrong; with all figures.
    """
    used = found.hyperparameters
    figures: GPUFigures = {
        "rows per step": used.batch_size,
        "tokens at once": trained.max_batch_tokens or used.max_batch_tokens or "no limit",
        "checkpointing": "yes" if trained.gradient_checkpointing or used.gradient_checkpointing else "no",
    }
    speed = trained.tokens_per_second or 0
    if times is not None:
        step = seconds_per_step(read_times(times))
        speed = trained.tokens / trained.steps / step
        figures["s per step"] = round(step, 3)
        if scene.device == "cuda":
            figures |= _time_error(found.prediction, step * used.total_steps)
    figures["tokens/s"] = round(speed, 1)
    peak = device_facts(scene.device).peak_teraflops
    if method is not None and rows is not None and peak is not None:
        per_token = model_flops.per_token(SHAPES[rows.model], method.type, rows.mean_context)
        share = model_flops.utilization(per_token, speed / used.processes, peak)
        figures["MFU, %"] = round(100 * share, 1)
    figures["peak memory, GiB"] = round((trained.device_memory_bytes or 0) / GIBIBYTE, 2)
    if found.prediction is None:
        raise GPUCheckFailed("preflight predicted nothing; its log says why", figures)
    figures["predicted memory, GiB"] = round(found.prediction.device_memory_bytes / GIBIBYTE, 2)
    if scene.device == "cuda":
        check_memory(found.prediction.device_memory_bytes, trained.device_memory_bytes or 0, figures)
    return figures


def check_memory(predicted: int, peak: int, figures: GPUFigures) -> None:
    """Raise GPUCheckFailed, with the figures, if the prediction is off by more than the limit."""
    if not abs(predicted - peak) <= MAX_MEMORY_ERROR * peak:
        raise GPUCheckFailed(
            f"the predicted peak of {predicted / GIBIBYTE:.2f} GiB is off by more than"
            f" {MAX_MEMORY_ERROR:.0%} of the measured {peak / GIBIBYTE:.2f} GiB",
            figures,
        )


def _time_error(prediction: Prediction | None, seconds: float) -> GPUFigures:
    """The predicted duration of all steps, and a warning if the measured one is far outside of it."""
    if prediction is None or prediction.seconds_low is None or prediction.seconds_high is None:
        return {}
    low, high = prediction.seconds_low, prediction.seconds_high
    shown: GPUFigures = {"all steps, s": round(seconds, 1), "predicted, s": f"{low:.1f} to {high:.1f}"}
    if not low * (1 - MAX_SECONDS_ERROR) <= seconds <= high * (1 + MAX_SECONDS_ERROR):
        shown["warning"] = f"the duration is more than {MAX_SECONDS_ERROR:.0%} outside of its prediction"
    return shown
