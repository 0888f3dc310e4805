# SPDX-License-Identifier: Apache-2.0
"""The failure of a run that cannot fit its devices, and what would fit."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from finetune_trainer.contract.method import TYPES, can_shard, types_of
from finetune_trainer.contract.prediction import gibibytes
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.preflight.estimate.fakestep import StepShape
from finetune_trainer.preflight.estimate.memory import TrainMemory
from finetune_trainer.preflight.estimate.plan import FITS, MemoryPlan
from finetune_trainer.runtime.failure import StageFailure

MAX_DEVICES: Final = 64
"""Max number of devices that the message proposes."""
MIN_LENGTH: Final = 256
"""Min maxSequenceLength that the message proposes."""


def refusal(memory: TrainMemory, plan: MemoryPlan, available: int) -> StageFailure:
    """Create the failure (PREDICTED_OUT_OF_MEMORY), with figures and what would fit."""
    shape = replace(plan.shape, checkpointing=True)
    fitting = _alternatives(memory, shape, FITS * available)
    advice = ", or ".join(fitting) or "nothing that the trainer can change would fit"
    return StageFailure(
        FailureReason.PREDICTED_OUT_OF_MEMORY,
        f"{memory.method.label} needs {gibibytes(plan.smallest_bytes)} GiB per device of"
        f" {gibibytes(available)}, with batches of 1 row of {shape.length} tokens and gradient"
        f" checkpointing; {advice}. Create a new run, use a ComputeProfile with more memory per device, or"
        " set compute.onPredictedOutOfMemory: Warn to train in any case",
    )


def _alternatives(memory: TrainMemory, shape: StepShape, limit: float) -> list[str]:
    """The ways to train these rows that need less than `limit` bytes per device; shorter rows come last."""
    others = (_adapters(memory, shape), _more_devices(memory, shape, limit))
    fitting = [text for each in others for text, size in each if size < limit]
    return fitting or list(_shorter_rows(memory, shape, limit))


def _adapters(memory: TrainMemory, shape: StepShape) -> Iterator[tuple[str, int]]:
    """The other types that train an adapter for the same objective."""
    for type_ in types_of(memory.method.objective):
        if type_ != memory.method.type and TYPES[type_].trains_adapter:
            method = memory.method.model_copy(update={"type": type_})
            size = memory.with_method(method).peak_bytes(shape)
            yield f"{method.label} needs {gibibytes(size)}", size


def _more_devices(memory: TrainMemory, shape: StepShape, limit: float) -> Iterator[tuple[str, int]]:
    """The smallest number of devices whose shares fit, where weights can be sharded."""
    devices = 2 * memory.processes
    while can_shard(memory.method) and devices <= MAX_DEVICES:
        size = memory.with_shards(devices).peak_bytes(shape)
        if size < limit:
            yield f"{devices} devices with {memory.method.label} sharded need {gibibytes(size)}", size
            return
        devices *= 2


def _shorter_rows(memory: TrainMemory, shape: StepShape, limit: float) -> Iterator[str]:
    length = shape.length // 2
    while length >= MIN_LENGTH:
        size = memory.peak_bytes(replace(shape, length=length))
        if size < limit:
            yield f"maxSequenceLength {length} needs {gibibytes(size)}"
            return
        length //= 2
