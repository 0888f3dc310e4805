"""Handles exhausted memory: halves the batches and doubles their number, or fails with advice.

A step reads the same rows in any split, so the schedule and the number of steps do not change.
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
    """Memory is exhausted. `by_batch`: it happened while computing batches, so smaller ones may fit."""

    def __init__(self, message: str, max_row_tokens: int, *, by_batch: bool) -> None:
        super().__init__(message)
        self.max_row_tokens = max_row_tokens
        self.by_batch = by_batch


@contextmanager
def catch_out_of_memory(
    activity: str, device: torch.device, max_row_tokens: int, *, by_batch: bool
) -> Iterator[None]:
    """Turn any out-of-memory error of the block into OutOfMemory, with the memory figures of `device`."""
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
    """Free the memory of a failed attempt; no reference to its exception may remain."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class BatchSplit(BaseModel):
    """How often a run's batches were halved; stored in its folder, so no restart retries larger batches."""

    halvings: int = Field(default=0, ge=0)

    @classmethod
    def read(cls, folder: RunFolder) -> "BatchSplit":
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
        folder.write(FILE, self.model_dump_json().encode())

    def apply(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """Apply to `hyperparameters`: smaller batches, and the same number of rows per optimizer step."""
        parts = 1 << self.halvings
        return hyperparameters.model_copy(
            update={
                "per_device_batch_size": hyperparameters.per_device_batch_size // parts,
                "gradient_accumulation_steps": hyperparameters.gradient_accumulation_steps * parts,
            }
        )

    def can_halve(self, used: Hyperparameters, method: MethodType) -> bool:
        """Whether the method supports batches of half the size."""
        rows = used.per_device_batch_size
        return rows % 2 == 0 and rows // 2 >= METHODS[method].min_batch_rows

    def halved(self) -> "BatchSplit":
        """The split with half as many rows per batch."""
        return BatchSplit(halvings=self.halvings + 1)


def out_of_memory_failure(error: OutOfMemory, used: Hyperparameters, method: MethodType) -> StageFailure:
    """Create the failure of a run whose batches cannot or must not be smaller."""
    rows, max_row_tokens = used.per_device_batch_size, error.max_row_tokens
    figures = (
        f"perDeviceBatchSize is {rows} and the longest row has {max_row_tokens} tokens, so a batch has up to"
        f" {rows * max_row_tokens} tokens"
    )
    options = [
        *(["a smaller hyperparameters.perDeviceBatchSize, or none"] if rows > 1 else []),
        f"a hyperparameters.maxSequenceLength below {max_row_tokens}",
        *([] if used.gradient_checkpointing else ["hyperparameters.gradientCheckpointing: true"]),
        *([advice] if (advice := METHODS[method].memory_advice) else []),
        "a ComputeProfile with more memory",
    ]
    return StageFailure(
        FailureReason.OUT_OF_MEMORY,
        f"{error}; {figures}. Create a new run with {', or '.join(options)}",
    )


def _first_line(error: BaseException) -> str:
    """The first line of the error; PyTorch's whole message fills a screen."""
    return str(error).partition("\n")[0][:200] or type(error).__name__
