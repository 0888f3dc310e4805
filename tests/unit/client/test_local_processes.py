# SPDX-License-Identifier: Apache-2.0
"""Processes that a killed `finetune run` left, with real processes."""

import fcntl
import signal
import subprocess
import sys
from pathlib import Path

from finetune_client.local.processes import end_left_processes

SAVES = """
import pathlib, signal, sys
def save(*_):
    pathlib.Path(sys.argv[1]).write_text("saved")
    sys.exit(20)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
signal.pause()
"""


def test_a_left_trainer_saves_before_another_program_continues(tmp_path: Path) -> None:
    locks, state = tmp_path / "locks", tmp_path / "state"
    locks.mkdir()
    with (locks / "train-0.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-c", SAVES, str(state)]
        left = subprocess.Popen(
            command, stdout=subprocess.PIPE, pass_fds=(lock.fileno(),), start_new_session=True
        )
        lock.write(str(left.pid))
    with left:
        assert left.stdout is not None
        assert left.stdout.readline() == b"ready\n"

        end_left_processes(locks)

        assert state.read_text() == "saved"
        assert left.wait() == 20
    assert list(locks.iterdir()) == []


def test_a_process_with_the_number_of_an_ended_one_gets_no_signal(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as other:
        (tmp_path / "train-0.lock").write_text(str(other.pid))
        end_left_processes(tmp_path)
        assert other.poll() is None
        other.send_signal(signal.SIGKILL)
