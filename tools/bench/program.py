# SPDX-License-Identifier: Apache-2.0
"""Run programs, and measure time, processor time and memory of processes, from /proc."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console

from tools.bench.page import BenchError
from tools.bootstrap.uv import ROOT, cache_directory

TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Processor seconds since boot, by group of processes."""

    operator: float
    control_plane: float
    bench: float
    machine: float

    def __sub__(self, before: "ProcessUsage") -> "ProcessUsage":
        return ProcessUsage(
            self.operator - before.operator,
            self.control_plane - before.control_plane,
            self.bench - before.bench,
            self.machine - before.machine,
        )

    @property
    def foreign(self) -> float:
        """Processor seconds of all other programs and of the kernel's own work."""
        return max(0.0, self.machine - self.operator - self.control_plane - self.bench)


def measure_usage(operator: int | None, control_plane: Iterable[int]) -> ProcessUsage:
    """Usage up to now.

    Args:
        operator: pid of the running operator; None if it has not started.
        control_plane: pids of the running processes of the control plane.
    """
    return ProcessUsage(
        operator=0.0 if operator is None else processor_seconds(operator),
        control_plane=sum(map(processor_seconds, control_plane)),
        bench=processor_seconds(os.getpid()),
        machine=_machine_seconds(),
    )


def processor_seconds(pid: int) -> float:
    """User and system time of a running process with its threads."""
    # The second field, the name, may hold spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def peak_bytes(pid: int) -> int:
    """Maximum resident memory of a running process since its start."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM:"))


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its descendants; shared pages count once per process."""
    total = 0
    for process in descendants(pid):
        try:
            total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE_BYTES
        except OSError:
            # The process has ended.
            continue
    return total


def descendants(pid: int) -> Iterator[int]:
    """A process and all its descendants that run."""
    pending = [pid]
    while pending:
        process = pending.pop()
        try:
            children = [path.read_text() for path in Path(f"/proc/{process}").glob("task/*/children")]
        except OSError:
            continue
        yield process
        pending += (int(child) for text in children for child in text.split())


def _machine_seconds() -> float:
    """Busy time of all processors: without idle, I/O wait and stolen time."""
    user, nice, system, _idle, _iowait, interrupt, soft, *_ = (
        int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    )
    return (user + nice + system + interrupt + soft) / TICKS_PER_SECOND


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


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Result of one run of a command; the figures are those of `ProgramResult`."""

    output: bytes
    seconds: float
    processor_seconds: float
    peak_bytes: int


def run_command(command: Sequence[str], environment: Mapping[str, str]) -> CommandResult:
    """Run a command in the root of the repository.

    Raises:
        BenchError: it failed.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    if process.stdout is None:
        raise BenchError(f"{' '.join(command)} has no standard output")
    with _Sampler(process.pid) as sampler:
        output = process.stdout.read()
    # The usage of this child and its descendants, not of earlier children.
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode:
        raise BenchError(f"{' '.join(command)} ended with exit code {process.returncode}")
    return CommandResult(
        output=output,
        seconds=seconds,
        processor_seconds=usage.ru_utime + usage.ru_stime,
        peak_bytes=max(sampler.peak_bytes, usage.ru_maxrss << 10),
    )


def run(module: str, *arguments: str) -> ProgramResult:
    """Run `python -m MODULE ARGUMENTS FOLDER` with a temporary folder.

    Raises:
        BenchError: the program failed.
    """
    parent = cache_directory() / "bench"
    parent.mkdir(parents=True, exist_ok=True)
    # On the same disk as the input: the system's temporary folder may be in memory.
    with TemporaryDirectory(dir=parent) as folder:
        result = run_command(
            (sys.executable, "-m", module, *arguments, folder),
            {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": folder},
        )
    return ProgramResult(
        printed=json.loads(result.output.splitlines()[-1]),
        seconds=result.seconds,
        processor_seconds=result.processor_seconds,
        peak_bytes=result.peak_bytes,
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
