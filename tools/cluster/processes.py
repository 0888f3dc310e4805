# SPDX-License-Identifier: Apache-2.0
"""The long-running processes of a cluster, with record files by which later commands find them."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from tools.cluster.commands import becomes_true

WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL", "--")
"""Prefix of a command that the kernel kills when the thread that started it ends for any reason."""
_KILLED_WITHIN_SECONDS: Final = 10
_LOG_LINES: Final = 15
_SEARCH_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class ProcessRecord:
    """Record of a process.

    Attributes:
        pid: its pid.
        started: its start in clock ticks since boot, to detect that another process has the pid now.
        command: its command line.
    """

    pid: int
    started: int
    command: list[str]


class Processes:
    """Starts processes detached from the terminal, each with a record in `run` and a log in `log`.

    With `die_with_parent` the kernel kills them when the thread that started them ends for any reason.
    """

    def __init__(self, run: Path, log: Path, *, die_with_parent: bool = False) -> None:
        self._run = run
        self._log = log
        self._prefix = WITH_PARENT if die_with_parent else ()
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        mount_namespace_of: int | None = None,
        folder: Path | None = None,
    ) -> int:
        """Start `command` with a minimal environment, and return its pid.

        Args:
            name: name for record and log.
            command: the command line.
            mount_namespace_of: pid of a process whose mount namespace the command enters.
            folder: working directory; default: /.
        """
        enter = [] if mount_namespace_of is None else ["nsenter", "-t", str(mount_namespace_of), "-m", "--"]
        with self.log_file(name).open("ab") as log:
            child = subprocess.Popen(
                [*self._prefix, *enter, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={"PATH": _SEARCH_PATH, "HOME": "/"},
                cwd=folder or "/",
                start_new_session=True,
            )
        self._children[name] = child
        record = ProcessRecord(child.pid, start_time(child.pid) or 0, list(command))
        self._record_file(name).write_text(json.dumps(asdict(record)))
        return child.pid

    def names(self) -> list[str]:
        """Names of all processes that were started and not stopped, including those that have ended."""
        return sorted(path.name.removesuffix(".process") for path in self._run.glob("*.process"))

    def pid(self, name: str) -> int | None:
        """Pid of the process; None if it does not run."""
        record = self._record(name)
        if record is None or start_time(record.pid) != record.started:
            return None
        return record.pid

    def runs(self, name: str, command: Sequence[str]) -> bool:
        """Whether the process runs with exactly this command line."""
        record = self._record(name)
        return record is not None and record.command == list(command) and self.pid(name) is not None

    def stop(self, names: Sequence[str], number: signal.Signals, seconds: float) -> None:
        """Send a signal to the processes, and SIGKILL to those that still run after `seconds`."""
        self._signal(names, number)
        if not becomes_true(lambda: not self._any_alive(names), seconds):
            self._signal(names, signal.SIGKILL)
            becomes_true(lambda: not self._any_alive(names), _KILLED_WITHIN_SECONDS)
        for name in names:
            child = self._children.pop(name, None)
            if child is not None:
                child.wait(_KILLED_WITHIN_SECONDS)
            self._record_file(name).unlink(missing_ok=True)

    def log_file(self, name: str) -> Path:
        return self._log / f"{name}.log"

    def log_tail(self, name: str) -> str:
        """The last lines of the process's log."""
        log = self.log_file(name)
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        return "\n".join([f"last lines of {log}:", *(f"  {line[:300]}" for line in lines[-_LOG_LINES:])])

    def _signal(self, names: Sequence[str], number: signal.Signals) -> None:
        for name in names:
            pid = self.pid(name)
            if pid is not None:
                send(pid, number)

    def _any_alive(self, names: Sequence[str]) -> bool:
        return any(self.pid(name) is not None for name in names)

    def _record_file(self, name: str) -> Path:
        return self._run / f"{name}.process"

    def _record(self, name: str) -> ProcessRecord | None:
        try:
            return ProcessRecord(**json.loads(self._record_file(name).read_text()))
        except FileNotFoundError:
            return None


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process; no error if it has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def start_time(pid: int) -> int | None:
    """Start of a process in clock ticks since boot; None if it has ended or is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name, may hold spaces and parentheses.
    state, *fields = stat.rpartition(") ")[2].split()
    return None if state in {"Z", "X"} else int(fields[18])


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
