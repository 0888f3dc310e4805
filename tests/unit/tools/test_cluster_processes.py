# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive the command that started them."""

import json
import os
import signal
from pathlib import Path

import pytest

from tools.cluster.commands import becomes_true
from tools.cluster.processes import Processes, start_time

SLEEP = ["sleep", "1000"]


@pytest.fixture
def processes(tmp_path: Path) -> Processes:
    return Processes(tmp_path, tmp_path)


def test_another_object_finds_and_stops_what_was_started(processes: Processes, tmp_path: Path) -> None:
    pid = processes.start("sleeper", SLEEP)
    later = Processes(tmp_path, tmp_path)
    assert later.names() == ["sleeper"]
    assert later.pid("sleeper") == pid
    later.stop(["sleeper"], signal.SIGTERM, seconds=5)
    assert start_time(pid) is None
    assert later.names() == []


def test_a_process_that_ignores_the_signal_is_killed(processes: Processes) -> None:
    pid = processes.start("stubborn", ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"])
    assert becomes_true(lambda: "ready" in processes.log_tail("stubborn"), seconds=10)
    processes.stop(["stubborn"], signal.SIGTERM, seconds=0.1)
    assert start_time(pid) is None


def test_a_process_that_ended_is_not_alive_although_nobody_has_reaped_it(processes: Processes) -> None:
    processes.start("short", ["true"])
    assert becomes_true(lambda: processes.pid("short") is None, seconds=10)
    assert processes.names() == ["short"]
    processes.stop(["short"], signal.SIGTERM, seconds=5)


def test_a_pid_that_was_given_to_another_process_is_left_alone(processes: Processes, tmp_path: Path) -> None:
    record = {"pid": os.getpid(), "started": 1, "command": SLEEP}
    (tmp_path / "stale.process").write_text(json.dumps(record))
    assert processes.pid("stale") is None
    processes.stop(["stale"], signal.SIGKILL, seconds=1)
    assert processes.names() == []


def test_other_options_are_noticed(processes: Processes) -> None:
    processes.start("sleeper", SLEEP)
    assert processes.runs("sleeper", SLEEP)
    assert not processes.runs("sleeper", ["sleep", "2000"])
    processes.stop(["sleeper"], signal.SIGKILL, seconds=5)


def test_the_end_of_a_log_is_quoted(processes: Processes) -> None:
    processes.start("failing", ["sh", "-c", "echo no such option >&2; exit 1"])
    assert becomes_true(lambda: processes.pid("failing") is None, seconds=10)
    assert "no such option" in processes.log_tail("failing")
    processes.stop(["failing"], signal.SIGTERM, seconds=5)
