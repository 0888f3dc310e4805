# SPDX-License-Identifier: Apache-2.0
"""Memory that the processes of this pod may use."""

import logging
import os
from pathlib import Path
from typing import Final

MEMORY_LIMIT_PATH: Final = Path("/sys/fs/cgroup/memory.max")
"""Memory limit of the container in bytes, or `max` (cgroup v2)."""

logger = logging.getLogger(__name__)


def pod_memory_bytes(limit: Path = MEMORY_LIMIT_PATH) -> int:
    """Return the limit of the pod in bytes, or the memory of the node if the pod has no limit."""
    node = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        allowed = limit.read_text().strip()
    except OSError as error:
        logger.debug("the memory limit is unknown: %s", error)
        return node
    return node if allowed == "max" else min(node, int(allowed))
