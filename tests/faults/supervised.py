# SPDX-License-Identifier: Apache-2.0
"""An operator process that is restarted whenever it ends, as the kubelet restarts its container."""

import threading
from collections.abc import Callable
from typing import Protocol


class Process(Protocol):
    """An operator process that runs or has run."""

    @property
    def log(self) -> str: ...

    def wait(self) -> None: ...

    def kill(self) -> None: ...


class Supervised:
    """Keeps a process running from `start` to `close`.

    Args:
        launch: starts a process.

    Attributes:
        restarts: number of restarts.
    """

    def __init__(self, launch: Callable[[], Process]) -> None:
        self.restarts = 0
        self._launch = launch
        self._closing = False
        self._current: Process | None = None
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def start(self) -> None:
        self._current = self._launch()
        self._thread.start()

    @property
    def log(self) -> str:
        """The log of all its processes."""
        return self._current.log if self._current is not None else ""

    def kill(self) -> None:
        if self._current is not None:
            self._current.kill()

    def close(self) -> None:
        self._closing = True
        self.kill()
        self._thread.join()

    def _supervise(self) -> None:
        while self._current is not None:
            self._current.wait()
            if self._closing:
                return
            self.restarts += 1
            self._current = self._launch()
