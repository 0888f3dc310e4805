# SPDX-License-Identifier: Apache-2.0
"""Processes of the tests' fork server end with the session that started them."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.waiting import eventually
from tools.bootstrap.uv import ROOT
from tools.cluster.processes import start_time


def test_forked_processes_end_with_a_session_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    script = (
        "import pathlib, time\n"
        "from tests.forkserver import Forked\n"
        "pids = [Forked(time.sleep, 600).pid for _ in range(2)]\n"
        f"part = pathlib.Path({str(tmp_path / 'part')!r})\n"
        "part.write_text(' '.join(map(str, pids)))\n"
        f"part.rename({str(file)!r})\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT) as session:
        eventually("both have started", file.exists)
        pids = [int(pid) for pid in file.read_text().split()]
        assert all(start_time(pid) is not None for pid in pids)
        session.send_signal(signal.SIGKILL)
    eventually("both have ended", lambda: all(start_time(pid) is None for pid in pids))
