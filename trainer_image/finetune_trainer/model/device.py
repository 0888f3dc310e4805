# SPDX-License-Identifier: Apache-2.0
"""The device that a model runs on: its choice, its memory and number of threads, and its errors.

Exhausted memory of a GPU or of the CPU is one exception, `OutOfMemory`. A stage that was given accelerators
checks that it can use them before it does any work.
"""

import ctypes
import gc
import logging
import platform
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist

from finetune_trainer.contract.accelerators import GIBIBYTE, DeviceFacts, find_card, why_unusable
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.pod_limits import MEMORY_LIMIT_PATH, available_processors, pod_memory_bytes
from finetune_trainer.runtime.termination import StageFailure

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


def frozen_dtype(device: torch.device) -> torch.dtype | None:
    """Dtype of weights that are not trained; None: as they are stored.

    A GPU multiplies in bfloat16: float32 weights would take twice the memory, and autocast would convert them
    in each pass. A CPU that is slow with 16 bits gets float32.
    """
    if device.type == "cuda":
        return torch.bfloat16
    return None if multiplies_bfloat16(device) else torch.float32


def mixes_precision(device: torch.device) -> bool:
    """Whether training on this device computes in bfloat16 with float32 weights."""
    return device.type == "cuda"


def mixed_precision(device: torch.device) -> torch.autocast:
    """The precision of a forward pass without gradients, as in training: bfloat16 matrices on a GPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixes_precision(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` means that the memory of a GPU or of the CPU is exhausted."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in ALLOCATION_FAILURES)


def is_collective_error(error: BaseException) -> bool:
    """Whether a collective failed; gloo raises plain RuntimeErrors whose text names its source file."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: of tensors on a GPU since the last failed attempt, of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _peak_of_process()


def _peak_of_process() -> int:
    """Peak resident memory of this process in bytes. Linux counts it in KiB, macOS in bytes."""
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
    return _peak_of_process(), pod_memory_bytes(limit)


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
    """Free the memory of a failed attempt, and forget its peak; no reference to its exception may remain."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _first_line(error: BaseException) -> str:
    """The first line of the error; PyTorch's whole message fills a screen."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


MIN_CUBLAS_BYTES: Final = 1 << 20
"""A smaller libcublas is a stub: the `cpu` variant of the image has stubs instead of CUDA's libraries."""


def check_accelerators(requested: int) -> None:
    """Raise StageFailure if the pod requests accelerators, and this image or its node has none that trains.

    WRONG_IMAGE and UNSUPPORTED_DEVICE fail the run at once. DEVICE_NOT_FOUND is retried, because another node
    may be in order.

    Args:
        requested: accelerators of the pod; 0 checks nothing, so a stage without them runs in any image.
    """
    if requested == 0:
        return
    if not has_gpu_libraries():
        raise StageFailure(
            FailureReason.WRONG_IMAGE,
            f"the pod requests {_count(requested)}, but its image is the trainer's variant for CPUs, without"
            " CUDA: build the cuda variant with make images VARIANT=cuda, and name it in"
            " spec.images.trainer of the ComputeProfile, or in trainerImage of the chart for all profiles;"
            " then create a new FineTuneJob",
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < requested:
        raise StageFailure(
            FailureReason.DEVICE_NOT_FOUND,
            f"the pod requests {_count(requested)}, and PyTorch {torch.__version__} finds {found}: check that"
            " nvidia-smi works on the node, that its driver supports CUDA"
            f" {torch.version.cuda or torch.version.hip}, and that spec.runtimeClassName of the"
            " ComputeProfile names a runtime with GPU support",
            ExitCode.INTERNAL,
        )
    for number in range(requested if torch.version.cuda else 0):
        name, capability = torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number)
        if (reason := why_unusable(name, capability)) is not None:
            raise unsupported_device(reason)


def check_card(device: DeviceFacts | None) -> None:
    """Raise StageFailure (UNSUPPORTED_DEVICE) if these devices are a known card that cannot train."""
    card = find_card(device.product) if device is not None else None
    reason = why_unusable(card.name, card.compute_capability) if card is not None else None
    if reason is not None:
        raise unsupported_device(reason)


def unsupported_device(reason: str) -> StageFailure:
    """The failure of a run on devices that the trainer cannot use."""
    return StageFailure(
        FailureReason.UNSUPPORTED_DEVICE,
        f"{reason}: name a ComputeProfile with other devices in compute.profile of a new FineTuneJob"
        " (kubectl get computeprofiles)",
    )


def has_gpu_libraries(packages: Path | None = None) -> bool:
    """Whether PyTorch was built for GPUs and its libraries are not stubs.

    Args:
        packages: folder of the installed packages; None for that of PyTorch.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        return False
    folder = packages or Path(torch.__file__).parents[1]
    # Where CUDA is not a package of Python, PyTorch has its libraries from the system.
    libraries = list((folder / "nvidia").glob("**/libcublas.so*"))
    return not libraries or any(path.stat().st_size >= MIN_CUBLAS_BYTES for path in libraries)


def _count(number: int) -> str:
    return f"{number} accelerator{'' if number == 1 else 's'}"
