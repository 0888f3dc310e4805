# SPDX-License-Identifier: Apache-2.0
"""Processes that are forked from a server that has already imported their modules.

Starting Python and importing the operator or PyTorch takes seconds of processor time; a fork takes
milliseconds. A session has one server for all tests. It starts with the first process, so the modules that it
imports must be named when tests are collected.

Each process ends with the session that started it, even if SIGKILL ends the session. Otherwise the server
would live as long as one of its processes.
"""

import gc
import multiprocessing
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from multiprocessing.connection import wait as wait_for_one
from typing import Final

_SERVER: Final = multiprocessing.get_context("forkserver")
_MODULES: Final[list[str]] = []
_LOCK: Final = threading.Lock()
"""multiprocessing polls all its processes when it starts one; two concurrent polls lose an exit code."""


def preload(*modules: str) -> None:
    """Have the server import these modules."""
    _MODULES.extend(module for module in modules if module not in _MODULES)
    _SERVER.set_forkserver_preload(_MODULES)


def _call(function: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=_end_with_the_session, daemon=True, name="session").start()
    gc.freeze()  # otherwise a garbage collection copies the server's memory
    function(*arguments)


def _end_with_the_session() -> None:
    session = multiprocessing.parent_process()
    assert session is not None
    session.join()
    os.kill(os.getpid(), signal.SIGKILL)


class Forked:
    """A process that calls a function and ends, with methods of `subprocess.Popen`.

    The function and its arguments are pickled. The process has the working folder of this process, and the
    standard streams and the environment of the server.
    """

    def __init__(self, function: Callable[..., None], *arguments: object) -> None:
        self._process = _SERVER.Process(target=_call, args=(function, *arguments), daemon=True)
        with _LOCK:
            self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit code, or the negative number of the signal that ended the process; None while it runs."""
        with _LOCK:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the process, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        wait_for_one([self._process.sentinel], timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
