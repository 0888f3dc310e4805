# SPDX-License-Identifier: Apache-2.0
"""Run programs and measure the time and peak memory of all their processes."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console

from tools.bench.errors import BenchError
from tools.bench.usage import resident_bytes
from tools.bootstrap.uv import ROOT, cache_directory

SAMPLE_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """Result of one run of a program.

    Attributes:
        printed: the JSON object on its last output line.
        seconds: time from the start of the process to its end.
        processor_seconds: user and system time of all its threads and processes.
        peak_bytes: maximum resident memory: of all its processes together, sampled every SAMPLE_SECONDS, or
            of one process as counted by the kernel, whichever is larger.
    """

    printed: dict[str, Any]
    seconds: float
    processor_seconds: float
    peak_bytes: int


def run(module: str, *arguments: str) -> ProgramResult:
    """Run `python -m MODULE ARGUMENTS FOLDER` with a temporary folder.

    Raises:
        BenchError: the program failed.
    """
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    # On the same disk as the input: the system's temporary folder may be in memory.
    with TemporaryDirectory(dir=parent) as folder:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, folder],
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": folder},
            stdout=subprocess.PIPE,
        )
        if process.stdout is None:
            raise BenchError(f"{module} has no standard output")
        with _Sampler(process.pid) as sampler:
            output = process.stdout.read()
        # The usage of this child and its descendants, not of earlier children.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
    if process.returncode:
        raise BenchError(f"{module} ended with exit code {process.returncode}")
    return ProgramResult(
        printed=json.loads(output.splitlines()[-1]),
        seconds=seconds,
        processor_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(sampler.peak_bytes, usage.ru_maxrss << 10),
    )


def alternate(
    console: Console, title: str, rounds: int, programs: Mapping[str, str], *arguments: str
) -> dict[str, list[ProgramResult]]:
    """Run programs with the same arguments in alternation, so that a change of the machine affects all alike.

    Args:
        console: where the status of each run is shown.
        title: beginning of that status.
        rounds: number of runs of each program.
        programs: the module of each program, by its name.
        arguments: arguments of `run`.

    Returns:
        the results of each program, one per round.

    Raises:
        BenchError: a program failed.
    """
    measured: dict[str, list[ProgramResult]] = {name: [] for name in programs}
    for turn in range(rounds):
        for name, module in programs.items():
            # Refresh slowly: drawing takes processor time from the program that is measured.
            text = f"{title}: {name}, round {turn + 1} of {rounds}"
            with console.status(text, refresh_per_second=1):
                measured[name].append(run(module, *arguments))
    return measured


class _Sampler:
    """Samples the memory of a process and its descendants during the block."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, resident_bytes(self._pid))
