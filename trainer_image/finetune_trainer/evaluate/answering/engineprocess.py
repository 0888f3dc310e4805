# SPDX-License-Identifier: Apache-2.0
"""A server of a serving engine as a child process."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Self

import httpx

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime.termination import StageFailure

STARTUP_SECONDS: Final = 7200.0
"""Time in which the engine can load its models; as in the pods of endpoints."""
END_SECONDS: Final = 60.0
"""Time from SIGTERM until the processes of the engine are killed."""
POLL_SECONDS: Final = 0.2
KEPT_LINES: Final = 200
"""Lines of the engine's log in which the cause of its end is searched."""
ERROR: Final = re.compile(r"\b(?:[A-Za-z_.]*Error|Exception): .+")
OUT_OF_MEMORY: Final = re.compile(r"OutOfMemoryError|out of memory|No available memory|Free memory on device")
MAX_CAUSE_CHARACTERS: Final = 300


class EngineProcess:
    """The server, from `with` to its end. Its log is in that of this process."""

    def __init__(self, command: Sequence[str], port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        # In a group of its own: the engine has a process per device, which hold its memory.
        self._process = subprocess.Popen(
            list(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self._log = threading.Thread(target=self._copy_log, name="engine log", daemon=True)
        self._log.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End the server, and wait until the memory of its devices is free."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        # Also after the server has ended: its processes may survive it, and hold the memory of their devices.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.join(END_SECONDS)

    def wait_until_ready(self) -> str:
        """Wait until the server answers. Returns the version of the engine; `unknown` if it names none.

        Raises StageFailure (OUT_OF_MEMORY, INTERNAL).
        """
        deadline = time.monotonic() + STARTUP_SECONDS
        with httpx.Client(base_url=self.url) as client:
            while not _is_healthy(client):
                if self._process.poll() is not None:
                    raise self.failure()
                if time.monotonic() > deadline:
                    raise StageFailure(
                        FailureReason.INTERNAL,
                        f"the engine has not loaded its models within {STARTUP_SECONDS:.0f} seconds",
                        ExitCode.INTERNAL,
                    )
                time.sleep(POLL_SECONDS)
            return _version(client)

    def failure(self) -> StageFailure:
        """Why the server ended, by the last error in its log."""
        self._log.join(POLL_SECONDS)
        lines = list(self._lines)
        errors = [found[0] for line in lines if (found := ERROR.search(line)) is not None]
        # The last errors only say that another process has failed.
        cause = next((each for each in errors if OUT_OF_MEMORY.search(each)), errors[0] if errors else "")
        shown = (cause or (lines[-1] if lines else "it wrote no log")).strip()[:MAX_CAUSE_CHARACTERS]
        code = self._process.poll()
        ended = "does not answer" if code is None else f"ended with exit code {code}"
        text = f"the engine {ended}: {shown}"
        if OUT_OF_MEMORY.search(cause):
            return StageFailure(FailureReason.OUT_OF_MEMORY, text)
        return StageFailure(FailureReason.INTERNAL, text, ExitCode.INTERNAL)

    def _copy_log(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            self._lines.append(line)
            sys.stdout.write(line)
            sys.stdout.flush()


def _is_healthy(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def _version(client: httpx.Client) -> str:
    try:
        return str(client.get("/version").json()["version"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError):
        return "unknown"
