# SPDX-License-Identifier: Apache-2.0
"""Handles exhausted memory: halves batches, then recomputes activations, then fails with advice.

A step reads the same rows in any split, so the schedule and the number of steps do not change.
"""

import logging
from typing import Final

from pydantic import BaseModel, Field, ValidationError

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.methods import TYPES, types_of
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.contract.sharding import is_sharded
from finetune_trainer.distributed.group import Group
from finetune_trainer.model.outofmemory import OutOfMemory
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder

FILE: Final = "batchsplit.json"

logger = logging.getLogger(__name__)


class MemoryLadder(BaseModel):
    """What was done so that a run's batches fit; stored in its folder, so no restart tries larger ones again.

    The rungs, in this order: batches are halved as long as a batch has several rows; activations are
    recomputed. None of them changes the rows of an optimizer step.
    """

    halvings: int = Field(default=0, ge=0)
    max_batch_tokens: int | None = None
    """The halved token budget; None if the run has none, or if it was never halved."""
    gradient_checkpointing: bool = False
    """Whether it was turned on because memory ran out."""

    @classmethod
    def read(cls, folder: RunFolder) -> "MemoryLadder":
        """Read that of the run. Raises StageFailure (STORE_UNAVAILABLE)."""
        content = folder.read(FILE)
        if content is None:
            return cls()
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            logger.warning("%s/%s is damaged and ignored: %s", folder.uri, FILE, error)
            return cls()

    def write(self, folder: RunFolder) -> None:
        """Store it in the run's folder. Raises StageFailure (STORE_UNAVAILABLE)."""
        folder.write(FILE, self.model_dump_json(exclude_defaults=True).encode())

    def broadcast(self, group: Group) -> "MemoryLadder":
        """That of rank 0. Collective."""
        return MemoryLadder(
            halvings=group.broadcast(self.halvings),
            max_batch_tokens=group.broadcast(self.max_batch_tokens or 0) or None,
            gradient_checkpointing=bool(group.broadcast(int(self.gradient_checkpointing))),
        )

    @property
    def rungs(self) -> int:
        """Number of changes so far."""
        return self.halvings + self.gradient_checkpointing

    def apply(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """Apply to `hyperparameters`: smaller batches, and the same number of rows per optimizer step."""
        parts = 1 << self.halvings
        update: dict[str, int] = {}
        if self.gradient_checkpointing:
            update["gradient_checkpointing"] = True
        if self.max_batch_tokens is not None:
            update["max_batch_tokens"] = self.max_batch_tokens
        elif hyperparameters.max_batch_tokens is None:
            update["per_device_batch_size"] = hyperparameters.per_device_batch_size // parts
            update["gradient_accumulation_steps"] = hyperparameters.gradient_accumulation_steps * parts
        return hyperparameters.model_copy(update=update)

    def next(
        self, used: Hyperparameters, max_row_tokens: int, *, adapts_batches: bool
    ) -> "MemoryLadder | None":
        """The next rung for a run that uses `used`; None after the last one.

        `adapts_batches`: whether batches may be halved, because the user did not set their size.
        """
        if adapts_batches and _can_halve(used, max_row_tokens):
            update: dict[str, int] = {"halvings": self.halvings + 1}
            if used.max_batch_tokens is not None:
                # All rows of a step may be fewer tokens than the budget.
                largest = min(used.max_batch_tokens, _step_rows(used) * max_row_tokens)
                update["max_batch_tokens"] = largest // 2
            return self.model_copy(update=update)
        if not used.gradient_checkpointing:
            return self.model_copy(update={"gradient_checkpointing": True})
        return None


def _can_halve(used: Hyperparameters, max_row_tokens: int) -> bool:
    """Whether a smaller batch is possible: the longest row alone is the smallest batch of a token budget."""
    if used.max_batch_tokens is not None:
        return min(used.max_batch_tokens, _step_rows(used) * max_row_tokens) > max_row_tokens
    return used.per_device_batch_size % 2 == 0


def _step_rows(used: Hyperparameters) -> int:
    """Rows of an optimizer step per process."""
    return used.per_device_batch_size * used.gradient_accumulation_steps


def describe_batches(used: Hyperparameters) -> str:
    """The batches of a run and what they keep in memory, as a noun phrase."""
    if used.max_batch_tokens is not None:
        batches = f"batches of up to {used.max_batch_tokens} tokens"
    else:
        rows, times = used.per_device_batch_size, used.gradient_accumulation_steps
        batches = f"batches of {rows} rows, accumulated {times} times"
    return f"{batches}, and gradient checkpointing" if used.gradient_checkpointing else batches


def out_of_memory_failure(error: OutOfMemory, used: Hyperparameters, method: Method) -> StageFailure:
    """Create the failure of a run whose batches cannot or must not be smaller."""
    rows, max_row_tokens = used.per_device_batch_size, error.max_row_tokens
    if used.max_batch_tokens is None:
        figures = (
            f"perDeviceBatchSize is {rows} and the longest row has {max_row_tokens} tokens, so a batch has up"
            f" to {rows * max_row_tokens} tokens"
        )
    else:
        rows = 1
        figures = f"the largest batch is the longest row, of {max_row_tokens} tokens"
    checkpointing = "on" if used.gradient_checkpointing else "off"
    replicated = not is_sharded(method.type, used.sharded, used.processes)
    lighter = TYPES[method.type].lighter
    if lighter not in types_of(method.objective):
        lighter = None
    options = [
        *(["a smaller hyperparameters.perDeviceBatchSize, or none"] if rows > 1 else []),
        f"a hyperparameters.maxSequenceLength below {max_row_tokens}",
        *([f"method.type: {lighter} instead of {method.type}"] if lighter else []),
        *(["several devices and compute.sharding: Sharded"] if replicated else []),
        "a ComputeProfile with more memory",
    ]
    return StageFailure(
        FailureReason.OUT_OF_MEMORY,
        f"{error}; {figures}, and gradient checkpointing is {checkpointing}. Create a new run with"
        f" {', or '.join(options)}",
    )
