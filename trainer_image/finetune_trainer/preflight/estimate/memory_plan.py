# SPDX-License-Identifier: Apache-2.0
"""Chooses batches and gradient checkpointing so that a step fits the memory of a device.

Batches of rows are halved, and then activations are recomputed: the same steps that train takes when memory
runs out (`train.memory_ladder`). A token budget is the largest multiple of `BUDGET_STEP`, not below
`MIN_TOKENS`, with which a step fits, or else the largest with which it fits if activations are recomputed.
What the user set is kept.

The failure of a run that cannot fit its devices names what would fit.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from finetune_trainer.contract.accelerators import gibibytes
from finetune_trainer.contract.hyperparameters import Hyperparameters, RequestedHyperparameters
from finetune_trainer.contract.method import OBJECTIVES, TYPES, Objective, can_shard, types_of
from finetune_trainer.contract.prediction import Verdict
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.preflight.defaults import ROWS_PER_STEP
from finetune_trainer.preflight.estimate.fake_step import StepShape
from finetune_trainer.preflight.estimate.memory import TrainMemory
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.train.batches import largest_batch, max_process_rows
from finetune_trainer.train.memory_ladder import MemoryLadder

FITS: Final = 0.9
"""Share of a device's memory below which a prediction fits."""
MIN_TOKENS: Final = 2048
"""Tokens of a batch below which gradient checkpointing costs less time than smaller batches."""
BUDGET_STEP: Final = 1024
"""Difference of two token budgets that are tried."""
TOO_LARGE: Final = 1.15
"""Share of a device's memory above which a prediction cannot fit."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Settings of a run, and what a device needs with them."""

    hyperparameters: Hyperparameters
    shape: StepShape
    """The step that needs most memory."""
    peak_bytes: int
    verdict: Verdict
    smallest_bytes: int
    """Peak bytes with every rung that train takes when memory runs out."""
    chosen: tuple[str, ...]
    """What was changed so that it fits, one sentence each."""


def plan_memory(
    memory: TrainMemory,
    defaults: Hyperparameters,
    requested: RequestedHyperparameters,
    *,
    max_row_tokens: int,
    available: int | None,
) -> MemoryPlan:
    """Change `defaults` until the peak is below `FITS` of the memory of a device.

    Args:
        memory: what steps need.
        defaults: all hyperparameters; none of them is changed if `available` is unknown.
        requested: what the user set.
        max_row_tokens: tokens of the longest row after truncation.
        available: memory of a device in bytes.
    """
    objective = memory.method.objective

    def peak_of(used: Hyperparameters) -> int:
        return memory.peak_bytes(step_shape(used, objective, max_row_tokens))

    used, smallest = defaults, peak_of(defaults)
    verdict: Verdict = "Unknown"
    if available is not None:

        def fits(used: Hyperparameters) -> bool:
            return peak_of(used) < FITS * available

        for candidates in _candidates(defaults, requested, max_row_tokens):
            used = _first_that_fits(candidates, fits)
            if fits(used):
                smallest, verdict = peak_of(used), "Fits"
                break
        else:
            # Train turns on checkpointing when memory runs out, also where the user switched it off.
            smallest = peak_of(used.model_copy(update={"gradient_checkpointing": True}))
            verdict = "TooLarge" if smallest > TOO_LARGE * available else "Tight"
    return MemoryPlan(
        hyperparameters=used,
        shape=step_shape(used, objective, max_row_tokens),
        peak_bytes=peak_of(used),
        verdict=verdict,
        smallest_bytes=smallest,
        chosen=_sentences(requested, defaults, used, peak_of),
    )


def _candidates(
    defaults: Hyperparameters, requested: RequestedHyperparameters, max_row_tokens: int
) -> Iterator[Sequence[Hyperparameters]]:
    """Settings from the fastest to those that need least memory. Only what the user did not set changes.

    Each setting of a sequence needs less memory than the one before.
    """
    may_checkpoint = requested.gradient_checkpointing is None
    if defaults.max_batch_tokens is None:
        yield list(_rungs(defaults, may_checkpoint, max_row_tokens))
        return
    for checkpointing in (False, True) if may_checkpoint else (defaults.gradient_checkpointing,):
        min_tokens = MIN_TOKENS if may_checkpoint and not checkpointing else 0
        yield [
            defaults.model_copy(update={"max_batch_tokens": tokens, "gradient_checkpointing": checkpointing})
            for tokens in _budgets(defaults.max_batch_tokens, max(max_row_tokens, min_tokens))
        ]


def _rungs(defaults: Hyperparameters, may_checkpoint: bool, max_row_tokens: int) -> Iterator[Hyperparameters]:
    ladder: MemoryLadder | None = MemoryLadder()
    while ladder is not None and (may_checkpoint or not ladder.gradient_checkpointing):
        yield (used := ladder.apply(defaults))
        ladder = ladder.next(used, max_row_tokens)


def _budgets(largest: int, smallest: int) -> Iterator[int]:
    """`largest`, the multiples of `BUDGET_STEP` between, and `smallest`, in descending order."""
    if largest > smallest:
        yield largest
        first = (largest - 1) // BUDGET_STEP * BUDGET_STEP
        yield from range(first, smallest, -BUDGET_STEP)
    yield smallest


def _first_that_fits(
    candidates: Sequence[Hyperparameters], fits: Callable[[Hyperparameters], bool]
) -> Hyperparameters:
    """The first candidate that fits, or the last. Measures the first and the last, then by bisection."""
    last = len(candidates) - 1
    if fits(candidates[0]):
        return candidates[0]
    if not fits(candidates[last]):
        return candidates[last]
    return candidates[bisect_left(candidates, x=True, lo=1, hi=last, key=fits)]


def step_shape(used: Hyperparameters, objective: Objective, max_row_tokens: int) -> StepShape:
    """The step of a process that needs most memory: all rows are as long as the longest one."""
    rows = max_process_rows(used.batch_size, used.processes)
    if used.max_batch_tokens is not None:
        step_tokens = rows * max_row_tokens
        tokens = max(max_row_tokens, min(used.max_batch_tokens, step_tokens))
        return StepShape(
            rows=1,
            length=tokens,
            checkpointing=used.gradient_checkpointing,
            masks=False,
            accumulates=tokens < step_tokens,
        )
    batch = largest_batch(used.batch_size, used.processes, used.max_batch_rows)
    return StepShape(
        rows=batch,
        length=max_row_tokens,
        checkpointing=used.gradient_checkpointing,
        masks=batch * OBJECTIVES[objective].sequences_per_row > 1,
        accumulates=rows > batch,
    )


def _sentences(
    requested: RequestedHyperparameters,
    defaults: Hyperparameters,
    used: Hyperparameters,
    peak_of: Callable[[Hyperparameters], int],
) -> tuple[str, ...]:
    """Why `used` differs from the defaults, and its steps from those of one device."""
    sentences = []
    rows = used.batch_size
    if requested.batch_size is None and rows > max(ROWS_PER_STEP, used.processes):
        sentences.append(f"optimizer steps of {rows} rows: {ROWS_PER_STEP} would not fill the devices")
    without = used.model_copy(update={"gradient_checkpointing": defaults.gradient_checkpointing})
    if without != defaults:
        need = gibibytes(peak_of(defaults))
        sentences.append(
            f"batches of {_batch_text(without)}: {_batch_text(defaults)} would need {need} GiB per device"
        )
    if without != used:
        need = gibibytes(peak_of(without))
        sentences.append(f"gradient checkpointing: without it, a device would need {need} GiB")
    return tuple(sentences)


def _batch_text(used: Hyperparameters) -> str:
    if used.max_batch_tokens is not None:
        return f"up to {used.max_batch_tokens} tokens"
    rows = largest_batch(used.batch_size, used.processes, used.max_batch_rows)
    return "1 row" if rows == 1 else f"{rows} rows"


MAX_DEVICES: Final = 64
"""Max number of devices that the message proposes."""
MIN_LENGTH: Final = 256
"""Min maxSequenceLength that the message proposes."""


def predicted_out_of_memory(memory: TrainMemory, plan: MemoryPlan, available: int) -> StageFailure:
    """Create the failure (PREDICTED_OUT_OF_MEMORY), with figures and what would fit."""
    shape = replace(plan.shape, checkpointing=True)
    fitting = _alternatives(memory, shape, FITS * available)
    advice = ", or ".join(fitting) or "nothing that the trainer can change would fit"
    place = "per device" if memory.on_gpu else "for train pods"
    return StageFailure(
        FailureReason.PREDICTED_OUT_OF_MEMORY,
        f"{memory.method.label} needs {gibibytes(plan.smallest_bytes)} GiB {place} of"
        f" {gibibytes(available)}, with batches of 1 row of {shape.length} tokens and gradient"
        f" checkpointing; {advice}. Create a new run, use a ComputeProfile with more memory {place}, or"
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
