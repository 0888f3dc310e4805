"""Where a model runs, and on how many threads."""

import logging
import math
import os
from pathlib import Path
from typing import Final

import torch

CPU_LIMIT_PATH: Final = Path("/sys/fs/cgroup/cpu.max")
"""Processor time that the container may use, in microseconds a period (cgroup v2)."""

logger = logging.getLogger(__name__)


def choose_device() -> torch.device:
    """The GPU where there is one, else the CPU with as many threads as the pod may use."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(available_processors(CPU_LIMIT_PATH))
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


def available_processors(cpu_limit: Path) -> int:
    """Processors that this process may use.

    PyTorch counts the node's processors; with a thread for each of them, a pod with a small limit is
    throttled most of the time.
    """
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = cpu_limit.read_text().split()
    except OSError as error:
        logger.debug("no CPU limit known: %s", error)
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))
