# SPDX-License-Identifier: Apache-2.0
"""Copies of artifacts on the pod's own volume, made once for all processes of the pod."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from finetune_trainer.manifest import MANIFEST_NAME
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.store.failures import convert_write_errors

LOCKS: Final = ".locks"
POLL_SECONDS: Final = 0.2


class PodCopies:
    """Folders below `root`, by their keys in the store. A folder with a manifest is complete.

    Once `stop` is set, waiting for another process raises Preempted. A process that ends releases its lock.
    """

    def __init__(self, root: Path, stop: threading.Event) -> None:
        self._root = root
        self._stop = stop

    def get(self, key: str, copy: Callable[[Path], None]) -> Path:
        """Return a folder; if no process has copied it, this one does while the others wait.

        Raises Preempted, StageFailure, and what `copy` raises.
        """
        folder = self._root / key
        if not self._has(key):
            with self._locked(key):
                if not self._has(key):
                    copy(folder)
        return folder

    def keep(self, key: str, staging: Path) -> None:
        """Move a complete folder here, unless it is here already. Raises StageFailure."""
        folder = self._root / key
        with self._locked(key), convert_write_errors(folder):
            if not folder.exists():
                folder.parent.mkdir(parents=True, exist_ok=True)
                staging.rename(folder)

    def _has(self, key: str) -> bool:
        return (self._root / key / MANIFEST_NAME).exists()

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        path = self._root / LOCKS / key.replace("/", "-")
        with convert_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(poll_interval=POLL_SECONDS, cancel_check=self._stop.is_set)
            except Timeout as error:
                raise Preempted from error
        try:
            yield
        finally:
            lock.release()
