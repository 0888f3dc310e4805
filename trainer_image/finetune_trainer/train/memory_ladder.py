# SPDX-License-Identifier: Apache-2.0
"""Handles exhausted memory: halves batches, then recomputes activations, then fails with advice.

A step reads the same rows however it is divided, so the schedule and the number of steps do not change.
"""

import logging
from typing import Final

from pydantic import Field, ValidationError

from finetune_trainer.contract.hyperparameters import Hyperparameters, StepDivision
from finetune_trainer.contract.method import TYPES, Method, is_sharded, types_of
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.model.device import OutOfMemory
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder
from finetune_trainer.train.batches import largest_batch, max_process_rows

FILE: Final = "batchsplit.json"

logger = logging.getLogger(__name__)


class MemoryLadder(StepDivision):
    """What was done so that a run's batches fit; stored in its folder, so no restart tries larger ones again.

    The rungs, in this order: batches are halved as long as a batch has several rows; activations are
    recomputed. None of them changes the rows of an optimizer step. Its division is that of the last halving.
    """

    halvings: int = Field(default=0, ge=0)
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
            max_batch_rows=group.broadcast(self.max_batch_rows or 0) or None,
            max_batch_tokens=group.broadcast(self.max_batch_tokens or 0) or None,
            gradient_checkpointing=bool(group.broadcast(int(self.gradient_checkpointing))),
        )

    @property
    def rungs(self) -> int:
        """Number of changes so far."""
        return self.halvings + self.gradient_checkpointing

    def apply(self, hyperparameters: Hyperparameters) -> Hyperparameters:
        """Apply to `hyperparameters`: smaller batches, and the same number of rows per optimizer step."""
        update: dict[str, int] = self.model_dump(include=set(StepDivision.model_fields), exclude_none=True)
        if self.gradient_checkpointing:
            update["gradient_checkpointing"] = True
        return hyperparameters.model_copy(update=update)

    def next(self, used: Hyperparameters, max_row_tokens: int) -> "MemoryLadder | None":
        """The next rung for a run that uses `used`; None after the last one."""
        halved = _halve_batches(used, max_row_tokens)
        if halved:
            return self.model_copy(update={"halvings": self.halvings + 1, **halved})
        if not used.gradient_checkpointing:
            return self.model_copy(update={"gradient_checkpointing": True})
        return None


def _halve_batches(used: Hyperparameters, max_row_tokens: int) -> dict[str, int]:
    """The limit of batches half as large; empty if the largest batch has one row."""
    if used.max_batch_tokens is not None:
        # All rows of a step may be fewer tokens than the budget, and the longest row is a batch in any case.
        rows = max_process_rows(used.batch_size, used.processes)
        tokens = min(used.max_batch_tokens, rows * max_row_tokens)
        return {"max_batch_tokens": tokens // 2} if tokens > max_row_tokens else {}
    rows = largest_batch(used.batch_size, used.processes, used.max_batch_rows)
    return {"max_batch_rows": -(-rows // 2)} if rows > 1 else {}


def describe_batches(used: Hyperparameters) -> str:
    """The batches of a run and what they keep in memory, as a noun phrase."""
    if used.max_batch_tokens is not None:
        batches = f"batches of up to {used.max_batch_tokens} tokens"
    else:
        rows = largest_batch(used.batch_size, used.processes, used.max_batch_rows)
        batches = "batches of 1 row" if rows == 1 else f"batches of up to {rows} rows"
    return f"{batches}, and gradient checkpointing" if used.gradient_checkpointing else batches


def out_of_memory_failure(error: OutOfMemory, used: Hyperparameters, method: Method) -> StageFailure:
    """Create the failure of a run that no rung is left for."""
    replicated = not is_sharded(method.type, used.sharded, used.processes)
    lighter = TYPES[method.type].lighter
    if lighter not in types_of(method.objective):
        lighter = None
    options = [
        *([f"a hyperparameters.maxSequenceLength below {error.max_row_tokens}"] if error.by_batch else []),
        *([f"method.type: {lighter} instead of {method.type}"] if lighter else []),
        *(["several devices and compute.sharding: Sharded"] if replicated else []),
        "a ComputeProfile with more memory",
    ]
    figures = ""
    if error.by_batch:
        checkpointing = "on" if used.gradient_checkpointing else "off"
        figures = (
            f"; the largest batch is the longest row, of {error.max_row_tokens} tokens, and gradient"
            f" checkpointing is {checkpointing}"
        )
    return StageFailure(
        FailureReason.OUT_OF_MEMORY,
        f"{error}{figures}. Create a new run with {', or '.join(options)}",
    )
