# SPDX-License-Identifier: Apache-2.0
"""Run commands in parallel."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from tools.bootstrap.uv import ROOT
from tools.cluster.processes import WITH_PARENT

MAX_CONCURRENT: Final = 3


@dataclass(frozen=True)
class LaneResult:
    """Exit status and duration of one command."""

    status: int
    seconds: float


def run_concurrently(
    commands: Mapping[str, Sequence[str]], options: Callable[[], Sequence[str]] = tuple
) -> dict[str, LaneResult]:
    """Run named commands in order, MAX_CONCURRENT at a time, each with the options at its start.

    If there are several, each output line begins with the name of its command. After Ctrl-C, which the
    commands receive too, the function waits for the running commands and starts no other.
    """
    interrupted = threading.Event()
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        named = len(commands) > 1
        running = {
            name: pool.submit(_run, command, options, name * named, interrupted)
            for name, command in commands.items()
        }
        try:
            return {name: each.result() for name, each in running.items()}
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _run(
    command: Sequence[str],
    options: Callable[[], Sequence[str]],
    name: str,
    interrupted: threading.Event,
) -> LaneResult:
    """Run a command, unless one has ended by Ctrl-C, which may be before the main thread knows of it."""
    started = time.monotonic()
    if interrupted.is_set():
        return LaneResult(-signal.SIGINT, 0)
    with subprocess.Popen(
        [*WITH_PARENT, *command, *options()],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE if name else None,
        stderr=subprocess.STDOUT if name else None,
    ) as child:
        for line in child.stdout or ():
            sys.stdout.write(f"{name}  {line}")
            sys.stdout.flush()
        status = child.wait()
    if status == -signal.SIGINT:
        interrupted.set()
    return LaneResult(status, time.monotonic() - started)
