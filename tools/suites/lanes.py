"""Run commands in parallel."""

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
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


def run_concurrently(commands: Mapping[str, Sequence[str]]) -> dict[str, LaneResult]:
    """Run named commands in order, MAX_CONCURRENT at a time.

    If there are several, each output line begins with the name of its command. After Ctrl-C, which the
    commands receive too, the function waits for the running commands and starts no other.
    """
    with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
        named = len(commands) > 1
        running = {name: pool.submit(_run, command, name * named) for name, command in commands.items()}
        try:
            return {name: each.result() for name, each in running.items()}
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise


def _run(command: Sequence[str], name: str) -> LaneResult:
    started = time.monotonic()
    with subprocess.Popen(
        [*WITH_PARENT, *command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE if name else None,
        stderr=subprocess.STDOUT if name else None,
    ) as child:
        for line in child.stdout or ():
            sys.stdout.write(f"{name}  {line}")
            sys.stdout.flush()
        status = child.wait()
    return LaneResult(status, time.monotonic() - started)
