"""One program in a process of its own: what it prints, how long it takes, and how much memory at most."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from hack.bench.errors import BenchError
from hack.bootstrap.cache import cache_directory
from hack.bootstrap.uv import ROOT


@dataclass(frozen=True, slots=True)
class Ended:
    """One run.

    Attributes:
        printed: the JSON object that it wrote last.
        seconds: from the start of the process to its end.
        processor_seconds: user and system time of all its threads.
        peak_bytes: resident at most.
    """

    printed: dict[str, Any]
    seconds: float
    processor_seconds: float
    peak_bytes: int


def run(module: str, *arguments: str) -> Ended:
    """Run `python -m module ARGUMENTS FOLDER`; what it writes into the folder is removed.

    Raises:
        BenchError: it failed.
    """
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    # On the same disk as what is read: folders for temporary files may be in memory.
    with TemporaryDirectory(dir=parent) as folder:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, folder],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": folder},
            stdout=subprocess.PIPE,
        )
        if process.stdout is None:
            raise BenchError(f"{module} has no output")
        output = process.stdout.read()
        # Of this one child alone, not of all that there were.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
    if process.returncode:
        raise BenchError(f"{module} ended with exit code {process.returncode}")
    return Ended(
        printed=json.loads(output.splitlines()[-1]),
        seconds=seconds,
        processor_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss << 10,
    )
