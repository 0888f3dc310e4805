# SPDX-License-Identifier: Apache-2.0
"""Predicts the memory and duration of training, and chooses the settings that make it fit.

The duration follows from the floating-point operations of the run and the devices. The trainings of a
learning curve add theirs, and together they must fit the time of the run.
"""

import logging
import math
from collections.abc import Iterable, Sequence
from typing import Final

from transformers import PreTrainedModel

from finetune_trainer.contract.accelerators import DeviceFacts
from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import TYPES, Method, is_sharded, resolve_sharding
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.model.loading import weights_bytes
from finetune_trainer.preflight.estimate.fake_step import StepMeasure, StepShape
from finetune_trainer.preflight.estimate.memory import TrainMemory
from finetune_trainer.preflight.estimate.memory_plan import MemoryPlan, plan_memory, predicted_out_of_memory
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.train.batches import steps_per_epoch
from finetune_trainer.train.learning_curve_plan import share_of_work, subset_size

ASSUMED_MFU: Final = 0.35
"""Model FLOPs utilization of a profile without a finished run."""
ASSUMED_RANGE: Final = (0.25, 0.45)
"""Range of the utilizations that are usual for training language models of 1B and more."""
CAUSAL_SHARE: Final = 0.5
"""Share of attention that causal kernels compute."""
TERA: Final = 1e12
LAUNCH_SECONDS: Final = (5e-6, 8e-6)
"""Range of the time that an operation takes at least, however little it computes: PyTorch prepares and
launches one kernel after the other. Not measured by us."""


def run_flops(step: StepMeasure, shape: StepShape, lengths: Iterable[int], epochs: float) -> float:
    """Operations of all training steps on all devices; recomputed activations count.

    Matrix products grow with the tokens, attention with the square of each row's tokens. A reference model
    reads each row once.

    Args:
        step: what was measured.
        shape: the shape of the measured step.
        lengths: tokens of each training row, after truncation.
        epochs: number of passes over these rows, the last one possibly a part.
    """
    matmul = epochs * step.matmul_flops + min(1, epochs) * step.reference_matmul_flops
    attention = epochs * step.attention_flops + min(1, epochs) * step.reference_attention_flops
    per_token = matmul / (shape.rows * shape.length)
    per_square = CAUSAL_SHARE * attention / (shape.rows * shape.length**2)
    return sum(per_token * length + per_square * length**2 for length in lengths)


def launches(step: StepMeasure, used: Hyperparameters, lengths: Sequence[int]) -> int:
    """Operations of one process in all steps of training."""
    rows = used.batch_size / used.processes
    if used.max_batch_tokens is not None:
        batches = rows * sum(lengths) / len(lengths) / used.max_batch_tokens
    else:
        batches = rows / (used.max_batch_rows or rows)
    return used.total_steps * math.ceil(max(1, batches)) * step.operations


def seconds_range(
    flops: float, device: DeviceFacts | None, devices: int, mfu: float | None, operations: int = 0
) -> tuple[float, float] | None:
    """Shortest and longest expected duration in seconds; None if the peak of a device is unknown.

    A measured utilization gives one number, an assumed one a range. Small batches take the time in which
    their kernels are launched.

    Args:
        flops: those of the run on all devices.
        device: facts about a device.
        devices: number of devices.
        mfu: measured utilization; None for the usual range.
        operations: those of one process.
    """
    if device is None or device.peak_teraflops is None:
        return None
    at_peak = flops / (device.peak_teraflops * TERA * devices)
    low, high = (mfu, mfu) if mfu is not None else ASSUMED_RANGE
    shortest, longest = (operations * each for each in LAUNCH_SECONDS)
    return max(at_peak / high, shortest), max(at_peak / low, longest)


CPU_PROCESS_BYTES: Final = 1 << 30
"""Memory of a process of train without tensors, on a CPU: its libraries."""
GPU_PROCESS_BYTES: Final = 3 << 30
"""The same with a GPU: libraries of CUDA, its context and pinned buffers. Not measured."""

NOT_PREDICTED: Final = (
    "memory and duration of training could not be predicted for this model, so no setting is chosen to fit"
    " the devices; the log of preflight has the error"
)
"""The warning about a run without a prediction."""

logger = logging.getLogger(__name__)


def predict(
    config: PreflightConfig,
    method: Method,
    model: PreTrainedModel,
    defaults: Hyperparameters,
    lengths: Sequence[int],
) -> tuple[Hyperparameters, Prediction | None]:
    """Return the hyperparameters that fit the devices, and what training takes with them.

    Args:
        config: that of the stage.
        method: the method with the settings of the adapter that it trains.
        model: the base model on the meta device.
        defaults: hyperparameters chosen without regard to memory.
        lengths: tokens of each training row, as it is used.

    Returns the defaults and None if the model cannot be predicted.

    Raises StageFailure (PREDICTED_OUT_OF_MEMORY).
    """
    try:
        plan, prediction = _predict(config, method, model, defaults, lengths)
    except StageFailure:
        raise
    except Exception:
        # Some models do not run on tensors without content. They train without a prediction.
        logger.exception("this model cannot be predicted")
        return defaults, None
    logger.info("prediction: %s", prediction.to_json())
    return plan.hyperparameters, prediction


def _predict(
    config: PreflightConfig,
    method: Method,
    model: PreTrainedModel,
    defaults: Hyperparameters,
    lengths: Sequence[int],
) -> tuple[MemoryPlan, Prediction]:
    """Plan with the weights as the defaults say; sharded where that may and a replica does not fit."""
    available = _available_bytes(config)

    def planned(settings: Hyperparameters) -> tuple[TrainMemory, MemoryPlan]:
        memory = TrainMemory(
            model,
            method,
            settings.processes,
            sharded=is_sharded(method.type, settings.sharded, settings.processes),
            on_gpu=config.device is not None,
        )
        plan = plan_memory(
            memory, settings, config.hyperparameters, max_row_tokens=max(lengths), available=available
        )
        return memory, plan

    memory, plan = planned(defaults)
    if plan.verdict in ("Tight", "TooLarge"):
        sharded = resolve_sharding(config.sharding, method, defaults.processes, replica_fits=False)
        if sharded != defaults.sharded:
            memory, plan = planned(defaults.model_copy(update={"sharded": sharded}))
    if plan.verdict == "TooLarge" and available and config.on_predicted_out_of_memory == "Refuse":
        raise predicted_out_of_memory(memory, plan, available)
    return plan, _prediction(config, memory, plan, lengths)


def _available_bytes(config: PreflightConfig) -> int | None:
    """Memory of one device in bytes; of the pod if its devices are CPU cores. None if it is unknown."""
    return config.host_memory_bytes if config.device is None else config.device.memory_bytes


def _prediction(
    config: PreflightConfig, memory: TrainMemory, plan: MemoryPlan, lengths: Sequence[int]
) -> Prediction:
    step = memory.step(plan.shape)
    used = plan.hyperparameters
    epochs = used.total_steps / steps_per_epoch(len(lengths), used.batch_size)
    flops = run_flops(step, plan.shape, lengths, epochs)
    state_bytes = memory.state_bytes(step)
    operations = launches(step, used, lengths)
    seconds = seconds_range(flops, config.device, memory.processes, config.mfu, operations)
    low, high = seconds or (None, None)
    return Prediction(
        device_memory_bytes=plan.peak_bytes,
        device_memory_available_bytes=_available_bytes(config),
        host_memory_bytes=host_bytes(memory, config.devices, config.nodes, state_bytes),
        weights_bytes=weights_bytes(memory.model, quantized=TYPES[memory.method.type].quantized_base),
        state_bytes=state_bytes,
        flops=flops,
        seconds_low=low,
        seconds_high=high,
        mfu=None if seconds is None else config.mfu or ASSUMED_MFU,
        mfu_assumed=seconds is not None and config.mfu is None,
        verdict=plan.verdict,
        chosen=plan.chosen,
    )


def host_bytes(memory: TrainMemory, devices: int, nodes: int, state_bytes: int) -> int:
    """Peak bytes of a pod of train outside of its devices, in its processes together.

    Weights go straight to the devices, and rank 0 publishes one tensor at a time. With a GPU, a copy of the
    resume state is in host memory while it is written; that of sharded weights is divided among the pods.
    """
    if not memory.on_gpu:
        return devices * CPU_PROCESS_BYTES
    return devices * GPU_PROCESS_BYTES + state_bytes // (nodes if memory.sharded else 1)


def add_curve_duration(
    config: PreflightConfig, prediction: Prediction | None, rows: int, chosen: Hyperparameters
) -> Prediction | None:
    """The prediction of a run on `rows` rows, with the seconds of its learning curve.

    A training takes seconds in proportion to the rows that it reads.
    Raises StageFailure (INVALID_CONFIG) if even the lower bound exceeds the limit of the run.
    """
    if prediction is None or prediction.seconds_low is None or prediction.seconds_high is None:
        return prediction
    sizes = (subset_size(rows, share) for share in config.learning_curve)
    factor = 1 + sum(share_of_work(size, rows, chosen) for size in sizes)
    alone, limit = prediction.seconds_low, config.max_run_seconds
    together = factor * alone
    if config.learning_curve and limit is not None and together > limit:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"learningCurve.shares: the run takes at least {alone:.0f} s, and the trainings on parts of"
            f" its rows {together - alone:.0f} s more, together {together:.0f} s, but maxRunSeconds is"
            f" {limit}. Create a new run with fewer or smaller shares, without learningCurve, or with a"
            " larger compute.maxRunSeconds",
        )
    return prediction.model_copy(
        update={"seconds_low": together, "seconds_high": factor * prediction.seconds_high}
    )
