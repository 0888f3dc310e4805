# SPDX-License-Identifier: Apache-2.0
"""Predict what training will take, and choose the settings that make it fit."""

import logging
from collections.abc import Sequence
from typing import Final

from transformers import PreTrainedModel

from finetune_trainer.contract.configs import PreflightConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import TYPES, Method, is_sharded, resolve_sharding
from finetune_trainer.contract.prediction import Prediction
from finetune_trainer.model.loading import weights_bytes
from finetune_trainer.preflight.estimate.duration import ASSUMED_MFU, run_flops, seconds_range
from finetune_trainer.preflight.estimate.memory import TrainMemory
from finetune_trainer.preflight.estimate.plan import MemoryPlan, fit
from finetune_trainer.preflight.estimate.refusal import refusal
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.train.schedule import steps_per_epoch

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
    available = config.device.memory_bytes if config.device is not None else None

    def planned(settings: Hyperparameters) -> tuple[TrainMemory, MemoryPlan]:
        memory = TrainMemory(
            model,
            method,
            settings.processes,
            sharded=is_sharded(method.type, settings.sharded, settings.processes),
            on_gpu=config.device is not None,
        )
        plan = fit(memory, settings, config.hyperparameters, max_row_tokens=max(lengths), available=available)
        return memory, plan

    memory, plan = planned(defaults)
    if plan.verdict in ("Tight", "TooLarge"):
        sharded = resolve_sharding(config.sharding, method, defaults.processes, replica_fits=False)
        if sharded != defaults.sharded:
            memory, plan = planned(defaults.model_copy(update={"sharded": sharded}))
    if plan.verdict == "TooLarge" and available and config.on_predicted_out_of_memory == "Refuse":
        raise refusal(memory, plan, available)
    return plan, _prediction(config, memory, plan, lengths)


def _prediction(
    config: PreflightConfig, memory: TrainMemory, plan: MemoryPlan, lengths: Sequence[int]
) -> Prediction:
    step = memory.step(plan.shape)
    used = plan.hyperparameters
    epochs = used.total_steps / steps_per_epoch(len(lengths), used.batch_size)
    flops = run_flops(step, plan.shape, lengths, epochs)
    state_bytes = memory.state_bytes(step)
    seconds = seconds_range(flops, config.device, memory.processes, config.mfu)
    low, high = seconds or (None, None)
    return Prediction(
        device_memory_bytes=plan.peak_bytes,
        device_memory_available_bytes=config.device.memory_bytes if config.device is not None else None,
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
