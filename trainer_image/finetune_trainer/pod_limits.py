# SPDX-License-Identifier: Apache-2.0
"""Processors and memory that the processes of this pod may use."""

import logging
import math
import os
from pathlib import Path
from typing import Final

CPU_LIMIT_PATH: Final = Path("/sys/fs/cgroup/cpu.max")
"""Processor time that the container may use, in microseconds per period (cgroup v2)."""

logger = logging.getLogger(__name__)


def available_processors(cpu_limit: Path = CPU_LIMIT_PATH) -> int:
    """Return the number of processors in the affinity mask of this process, capped by its CPU limit.

    Libraries count the processors of the node. With a thread for each of them, a pod with a small limit is
    throttled most of the time.
    """
    # Only Linux has affinity masks.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = cpu_limit.read_text().split()
    except OSError as error:
        logger.debug("no CPU limit known: %s", error)
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, math.ceil(int(quota) / int(period))))


MEMORY_LIMIT_PATH: Final = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of the container in bytes, or `max` (cgroup v2)."""


def pod_memory_bytes(limit: Path = MEMORY_LIMIT_PATH) -> int:
    """Return the limit of the pod in bytes, or the memory of the node if the pod has no limit."""
    node = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = limit.read_text().strip()
    except OSError as error:
        logger.debug("the memory limit is unknown: %s", error)
        return node
    return node if allowed == "max" else min(node, int(allowed))
