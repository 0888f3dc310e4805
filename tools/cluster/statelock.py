# SPDX-License-Identifier: Apache-2.0
"""A lock for the state of a cluster."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tools.cluster.layout import Layout

LOG: Final = logging.getLogger(__name__)


@contextmanager
def exclusive(layout: Layout) -> Iterator[None]:
    """Hold the lock of the cluster's state; waits for a command that holds it."""
    while True:
        layout.state.mkdir(parents=True, exist_ok=True)
        path = layout.state / "lock"
        with path.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                LOG.info("Waiting for another command on the cluster %s", layout.name)
                fcntl.flock(lock, fcntl.LOCK_EX)
            # A purge may have removed the lock file during the wait.
            if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                yield
                return
