# SPDX-License-Identifier: Apache-2.0
"""Processor time and memory of processes, from /proc."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
