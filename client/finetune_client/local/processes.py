# SPDX-License-Identifier: Apache-2.0
"""Containers as processes of this machine, and the processes that a killed program left."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

LEFT_SECONDS: Final = 150.0
"""Time for a process that a killed program left to save its state."""
POLL_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a container.

    Attributes:
        pod: name of the pod.
        container: name of the container.
        stage: stage of its config.
        config: file with the config.
        environment: variables, in addition to those of this process.
        log: file to which the process appends its output.
        lock: file that the process and its children keep locked while they live.
    """

    pod: str
    container: str
    stage: str
    config: Path
    environment: Mapping[str, str]
    log: Path
    lock: Path


class ContainerProcess(Protocol):
    """A running container."""

    def poll(self) -> int | None:
        """The exit code, as a container's: 128 + the number of the signal that ended it. None: it runs."""

    def terminate(self) -> None:
        """Send SIGTERM."""

    def kill(self) -> None:
        """Send SIGKILL to the process and its children."""


StartProcess = Callable[[Launch], ContainerProcess]


class ChildProcess:
    """The installed trainer as a child of this process, in a session of its own.

    Ctrl-C on the terminal reaches only this program, which decides what to end.
    """

    def __init__(self, launch: Launch) -> None:
        for path in (launch.log, launch.lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "finetune_trainer", "--config", str(launch.config)]
        with launch.log.open("ab") as log, launch.lock.open("w", encoding="utf-8") as lock:
            # The children inherit the lock: it is free when the last of them has ended.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock.fileno(),),
            )
            lock.write(str(self._process.pid))

    def poll(self) -> int | None:
        code = self._process.poll()
        return code if code is None or code >= 0 else 128 - code

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def end_left_processes(locks: Path) -> None:
    """End the processes of containers that a killed program left: they save their state, or are killed.

    Args:
        locks: folder with the lock files of `Launch`.
    """
    for path in sorted(locks.glob("*.lock")):
        with path.open("r+", encoding="utf-8") as lock:
            deadline = time.monotonic() + LEFT_SECONDS
            signalled = False
            while not _is_free(lock.fileno()):
                # Only the holder of the lock wrote its process id there. Without one it ends by itself.
                holder = path.read_text(encoding="utf-8")
                with suppress(ProcessLookupError):
                    if holder and time.monotonic() > deadline:
                        os.killpg(int(holder), signal.SIGKILL)
                    elif holder and not signalled:
                        os.kill(int(holder), signal.SIGTERM)
                        signalled = True
                time.sleep(POLL_SECONDS)
        path.unlink()


def _is_free(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
