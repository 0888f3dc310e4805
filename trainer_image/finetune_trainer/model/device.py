# SPDX-License-Identifier: Apache-2.0
"""The device that a model runs on, its memory, and the number of threads."""

import ctypes
import logging
import resource
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from finetune_trainer.podmemory import MEMORY_LIMIT_PATH, pod_memory_bytes
from finetune_trainer.processors import available_processors

ALLOCATION_FAILURES: Final = (
    "DefaultCPUAllocator",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""Texts of the RuntimeErrors that PyTorch raises for allocations outside of the GPU's own allocator."""

logger = logging.getLogger(__name__)


def choose_device(local_rank: int | None = None, processes: int = 1) -> torch.device:
    """Return the GPU if there is one, else the CPU, and set the number of threads to what the pod may use.

    Args:
        local_rank: the rank of this process if several train in this pod: it gets the GPU of this number, or
            its share of the processors. None for a single process.
        processes: training processes in this pod.
    """
    limit_threads(processes)
    if torch.cuda.is_available():
        return torch.device("cuda") if local_rank is None else torch.device("cuda", local_rank)
    return torch.device("cpu")


def limit_threads(processes: int = 1) -> None:
    """Set the number of threads to what the pod may use, divided by the processes that share it."""
    torch.set_num_threads(max(1, available_processors() // processes))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device, or a library for it, multiplies bfloat16 matrices fast.

    Otherwise, for example on CPUs with AVX2 only, PyTorch multiplies one number at a time: a step takes
    minutes instead of seconds.
    """
    if device.type != "cpu":
        return True
    has_library: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_library and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def mixed_precision(device: torch.device) -> torch.autocast:
    """The precision of a forward pass without gradients, as in training: bfloat16 matrices on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that the memory of a GPU or of the CPU is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_FAILURES)


def is_collective_error(error: BaseException) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors whose text names its source file."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes since the process started: of tensors on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def return_freed_memory() -> None:
    """Return what the C library keeps of freed tensors on the CPU to the system, if it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_use(device: torch.device, limit: Path = MEMORY_LIMIT_PATH) -> tuple[int, int]:
    """Return used and total memory in bytes.

    On a GPU: the current use, and the memory of the GPU. On a CPU: the peak of this process, and the limit of
    the pod, or the memory of the node if the pod has no limit.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return used, pod_memory_bytes(limit)
