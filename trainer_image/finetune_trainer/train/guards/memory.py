"""What is done when memory runs out: batches of half as many rows and twice as many of them, or good advice.

A step reads the same rows however they are split, so that schedule and number of steps stay.
"""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from pydantic import BaseModel, Field, ValidationError

from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.methods import METHODS, MethodType
from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.model.device import is_out_of_memory, memory_use
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder

FILE: Final = "batchsplit.json"
GIBIBYTE: Final = 1 << 30

logger = logging.getLogger(__name__)


class OutOfMemory(Exception):
    """Memory ran out. `by_batch`: while batches were computed, so that smaller ones may fit."""

    def __init__(self, message: str, max_row_tokens: int, *, by_batch: bool) -> None:
        super().__init__(message)
        self.max_row_tokens = max_row_tokens
        self.by_batch = by_batch


@contextmanager
def catch_out_of_memory(
    activity: str, device: torch.device, max_row_tokens: int, *, by_batch: bool
) -> Iterator[None]:
    """Raise OutOfMemory, with the figures of `device`, for each way in which memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        used, total = memory_use(device)
        raise OutOfMemory(
            f"{activity} ran out of memory on {device}, with {used / GIBIBYTE:.2f} of"
            f" {total / GIBIBYTE:.2f} GiB in use ({_first_line(error)})",
            max_row_tokens,
            by_batch=by_batch,
        ) from error


def release_memory() -> None:
    """Give back what an attempt that failed had taken; its exception must be gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSplit(BaseModel):
    """How often a run's batches were halved; kept in its folder, so that no restart tries the larger ones."""

    halvings: int = Field(default=0, ge=0)

    @classmethod
    def read(cls, folder: RunFolder) -> "BatchSplit":
        """The run's own. Raises StageFailure (STORE_UNAVAILABLE)."""
        content = folder.read(FILE)
        if content is None:
            return cls()
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            logger.warning("%s/%s is damaged and not used: %s", folder.uri, FILE, error)
            return cls()

    def write(self, folder: RunFolder) -> None:
        """Remember it. Raises StageFailure (STORE_UNAVAILABLE)."""
        folder.write(FILE, self.model_dump_json().encode())

    def of(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """The hyperparameters with as many rows an optimizer step, in smaller batches."""
        parts = 1 << self.halvings
        return hyperparameters.model_copy(
            update={
                "per_device_batch_size": hyperparameters.per_device_batch_size // parts,
                "gradient_accumulation_steps": hyperparameters.gradient_accumulation_steps * parts,
            }
        )

    def can_halve(self, used: Hyperparameters, method: MethodType) -> bool:
        """Whether the method can work with batches of half as many rows."""
        rows = used.per_device_batch_size
        return rows % 2 == 0 and rows // 2 >= METHODS[method].min_batch_rows

    def halved(self) -> "BatchSplit":
        """With half as many rows a batch."""
        return BatchSplit(halvings=self.halvings + 1)


def out_of_memory_failure(error: OutOfMemory, used: Hyperparameters, method: MethodType) -> StageFailure:
    """The end of a run whose batches cannot be made smaller, or may not be."""
    rows, longest = used.per_device_batch_size, error.max_row_tokens
    figures = (
        f"perDeviceBatchSize is {rows} and the longest row has {longest} tokens, so that a batch has up to"
        f" {rows * longest}"
    )
    smaller = [
        *(["a smaller hyperparameters.perDeviceBatchSize, or without it"] if rows > 1 else []),
        f"a hyperparameters.maxSequenceLength below {longest}",
        *([] if used.gradient_checkpointing else ["hyperparameters.gradientCheckpointing: true"]),
        *([advice] if (advice := METHODS[method].memory_advice) else []),
        "a ComputeProfile with more memory",
    ]
    return StageFailure(
        FailureReason.OUT_OF_MEMORY,
        f"{error}; {figures}. Make a new run with {', or '.join(smaller)}",
    )


def _first_line(error: BaseException) -> str:
    """PyTorch's own words go on for a screenful."""
    return str(error).partition("\n")[0][:200] or type(error).__name__
