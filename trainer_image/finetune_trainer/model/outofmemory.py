# SPDX-License-Identifier: Apache-2.0
"""Exhausted memory as one exception, with the figures of the device."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from finetune_trainer.contract.prediction import GIBIBYTE
from finetune_trainer.model.device import is_out_of_memory, memory_use


class OutOfMemory(Exception):
    """Memory is exhausted. `by_batch`: it happened while computing batches, so smaller ones may fit."""

    def __init__(self, message: str, max_row_tokens: int, *, by_batch: bool) -> None:
        super().__init__(message)
        self.max_row_tokens = max_row_tokens
        self.by_batch = by_batch


@contextmanager
def catch_out_of_memory(
    activity: str, devices: Sequence[torch.device], max_row_tokens: int, *, by_batch: bool
) -> Iterator[None]:
    """Turn any out-of-memory error of the block into OutOfMemory, with the figures of the fullest device."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        use = {device: memory_use(device) for device in devices}
        device, (used, total) = max(use.items(), key=lambda item: item[1][0] / item[1][1])
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


def _first_line(error: BaseException) -> str:
    """The first line of the error; PyTorch's whole message fills a screen."""
    return str(error).partition("\n")[0][:200] or type(error).__name__
