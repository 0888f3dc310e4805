"""Where a model runs, and on how many threads."""

import logging
import os
import resource
from pathlib import Path
from typing import Final

import torch

from finetune_trainer.processors import available_processors

MEMORY_LIMIT_PATH: Final = Path("/sys/fs/cgroup/memory.max")
"""Bytes of memory that the container may use, or `max` (cgroup v2)."""

ALLOCATION_FAILURES: Final = (
    "DefaultCPUAllocator",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory",
)
"""In the words of a RuntimeError, which is all that PyTorch raises where it is not a GPU's own allocator."""

logger = logging.getLogger(__name__)


def choose_device(local_rank: int | None = None, processes: int = 1) -> torch.device:
    """The GPU where there is one, else the CPU; either with as many threads as the pod may use.

    `local_rank`: of one of several `processes` in this pod, which has the GPU of this number, or its share of
    the processors.
    """
    torch.set_num_threads(max(1, available_processors() // processes))
    if torch.cuda.is_available():
        return torch.device("cuda") if local_rank is None else torch.device("cuda", local_rank)
    return torch.device("cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether it has instructions for bfloat16, or a library's replacement for them.

    Without, as on CPUs that have AVX2 only, PyTorch multiplies matrices one number at a time: a step takes
    minutes instead of seconds.
    """
    if device.type != "cpu":
        return True
    has_library: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return has_library and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, that of a GPU or of the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in ALLOCATION_FAILURES)


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that tensors took of a GPU since the process began; of a CPU's memory, the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def memory_use(device: torch.device, limit: Path = MEMORY_LIMIT_PATH) -> tuple[int, int]:
    """Bytes in use and in all: of a GPU now; of the CPU the most that this process had, and the pod's limit.

    Without a limit of the pod, all is the node's memory.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    node = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = limit.read_text().strip()
    except OSError as error:
        logger.debug("no memory limit known: %s", error)
        return used, node
    return used, node if allowed == "max" else min(node, int(allowed))
