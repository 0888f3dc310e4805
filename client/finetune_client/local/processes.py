# SPDX-License-Identifier: Apache-2.0
"""Containers as processes of this machine, and the processes that a killed program left."""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from finetune_trainer.contract.environment import (
    PROGRESS_ENV,
    SERVE_HOST_ENV,
    TERMINATION_MESSAGE_ENV,
)
from finetune_trainer.entrypoint.fork_server import PRELOADED, THREADS_ENV, ForkRequest
from finetune_trainer.runtime import signals

CUDA_DEVICES_ENV: Final = "CUDA_VISIBLE_DEVICES"
PER_PROCESS: Final = frozenset(
    {CUDA_DEVICES_ENV, PROGRESS_ENV, SERVE_HOST_ENV, TERMINATION_MESSAGE_ENV, THREADS_ENV}
)
"""Variables that a stage reads after its imports."""
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


class StageProcesses:
    """Starts containers as processes of the installed trainer, each in a session of its own.

    Ctrl-C on the terminal reaches only this program, which decides what to end.

    On Linux, stages that import PyTorch and use no GPU are forked from one process that has imported it. Its
    import begins with the first container.
    """

    def __init__(self) -> None:
        self._server: ForkServer | None = None

    def __call__(self, launch: Launch) -> ContainerProcess:
        """Start a container."""
        for path in (launch.log, launch.lock):
            path.parent.mkdir(parents=True, exist_ok=True)
        if hasattr(os, "pidfd_open") and self._server is None:  # The fork server watches stages by pidfds.
            self._server = ForkServer(launch.log.with_name("fork-server.log"))
        with launch.log.open("ab") as log, launch.lock.open("w", encoding="utf-8") as lock:
            # The children inherit the lock: it is free when the last of them has ended.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._server is not None and self._server.can_start(launch):
                return ForkedProcess(self._server, launch, log.fileno(), lock.fileno())
            return ChildProcess(launch, log.fileno(), lock.fileno())

    def close(self) -> None:
        """End the process from which stages are forked. The stages continue."""
        if self._server is not None:
            self._server.close()
            self._server = None


class ChildProcess:
    """A container as a child of this process.

    Args:
        launch: how to start it.
        log: descriptor of its log.
        lock: descriptor of its lock.
    """

    def __init__(self, launch: Launch, log: int, lock: int) -> None:
        with signals.blocked():
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer", "--config", str(launch.config)],
                env={**os.environ, **launch.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock,),
            )
        os.write(lock, str(self._process.pid).encode())

    def poll(self) -> int | None:
        return _exit_code(self._process.poll())

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


class ForkServer:
    """The process from which stages are forked: `finetune_trainer.entrypoint.fork_server`.

    Args:
        log: file for its output.
    """

    def __init__(self, log: Path) -> None:
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer.entrypoint.fork_server", str(other.fileno())],
                env={**os.environ, CUDA_DEVICES_ENV: ""},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                pass_fds=(other.fileno(),),
            )

    def can_start(self, launch: Launch) -> bool:
        """Whether it runs, and a container needs no GPU and no variables that libraries have read already."""
        is_alone = launch.environment.keys() <= PER_PROCESS and not launch.environment.get(CUDA_DEVICES_ENV)
        return launch.stage in PRELOADED and is_alone and self._process.poll() is None

    def close(self) -> None:
        """End it, also while it imports."""
        self.socket.close()
        self._process.terminate()
        self._process.wait()


class ForkedProcess:
    """A container that a `ForkServer` forks.

    Args:
        server: the server.
        launch: how to start it.
        log: descriptor of its log.
        lock: descriptor of its lock.
    """

    def __init__(self, server: ForkServer, launch: Launch, log: int, lock: int) -> None:
        reading, writing = os.pipe()
        self._pipe = os.fdopen(reading, "rb", buffering=0)  # open until the process has ended
        os.set_blocking(reading, False)
        try:
            ForkRequest(str(launch.config), launch.environment).send(server.socket, log, lock, writing)
        finally:
            os.close(writing)
        self._reported = b""
        self._due: signal.Signals | None = None

    def poll(self) -> int | None:
        process, code = self._read()
        if process is not None and self._due is not None:
            self._send(process, self._due)
            self._due = None
        return code

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal, once the process has been forked."""
        process, code = self._read()
        if code is not None:
            return
        if process is None:
            self._due = number
        else:
            self._send(process, number)

    def _send(self, process: int, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            (os.killpg if number is signal.SIGKILL else os.kill)(process, number)

    def _read(self) -> tuple[int | None, int | None]:
        """The process id and the exit code so far. Without its server, a process counts as killed."""
        while not self._pipe.closed and (content := self._pipe.read()) is not None:
            self._reported += content
            if not content:
                self._pipe.close()
        numbers = [int(line) for line in self._reported.split()]
        process = numbers[0] if numbers else None
        code = numbers[1] if len(numbers) > 1 else None
        if code is None and self._pipe.closed:
            if process is not None:
                self._send(process, signal.SIGKILL)
            code = -signal.SIGKILL
        return process, _exit_code(code)


def _exit_code(code: int | None) -> int | None:
    """The exit code of a container, of a return code as in `subprocess.Popen`."""
    return code if code is None or code >= 0 else 128 - code


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
