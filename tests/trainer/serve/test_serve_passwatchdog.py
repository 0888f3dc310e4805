# SPDX-License-Identifier: Apache-2.0
"""A model thread that hangs ends the process; an idle or slow one does not."""

import os
import subprocess
import sys
import threading
from pathlib import Path

from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.serve.forward_watchdog import ForwardWatchdog
from tests.trainer.serve.endpoint import DEADLINE_SECONDS, wait_until
from tests.trainer.serve.test_serve_engine import Rig, rig, served

__all__ = ["rig", "served"]


def test_a_pass_that_never_ends_is_noticed(rig: Rig) -> None:
    hung = threading.Event()
    messages: list[str] = []

    def end(message: str) -> None:
        messages.append(message)
        hung.set()

    watchdog = ForwardWatchdog(lambda: rig.engine.pass_seconds, 0.05, end)
    watchdog.start()
    rig.ask(max_tokens=4)
    assert hung.wait(DEADLINE_SECONDS)
    assert "the model thread hangs" in messages[0]
    watchdog.stop()
    rig.let(4)
    wait_until(lambda: rig.engine.running == 0)


def test_the_time_of_a_pass_begins_anew_with_each_and_is_0_between_them(rig: Rig) -> None:
    assert rig.engine.pass_seconds == 0
    rig.ask(max_tokens=3)
    wait_until(lambda: rig.engine.pass_seconds > 0)
    first = rig.engine.pass_seconds
    wait_until(lambda: rig.engine.pass_seconds > first)
    rig.let(3)
    wait_until(lambda: rig.engine.running == 0 and rig.engine.pass_seconds == 0)


def test_passes_that_are_slow_but_end_are_left_alone() -> None:
    limit = 0.02
    # An idle server, and many passes that take nearly the limit.
    seconds = iter([0.0, *[limit * 0.9] * 50])
    seen = threading.Event()
    hung = threading.Event()

    def pass_seconds() -> float:
        try:
            return next(seconds)
        except StopIteration:
            seen.set()
            return 0.0

    watchdog = ForwardWatchdog(pass_seconds, limit, lambda _: hung.set())
    watchdog.start()
    assert seen.wait(DEADLINE_SECONDS)
    watchdog.stop()
    assert not hung.is_set()


def test_a_hang_ends_the_process_with_its_reason_and_every_threads_stack(tmp_path: Path) -> None:
    program = (
        "import threading\n"
        "from finetune_trainer.serve.forward_watchdog import ForwardWatchdog\n"
        "def stuck_in_the_model(): threading.Event().wait()\n"
        "threading.Thread(target=stuck_in_the_model, daemon=True).start()\n"
        "ForwardWatchdog(lambda: 1.0, 0.5).start()\n"
        "threading.Event().wait()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        env=dict(os.environ),
        cwd=tmp_path,
        check=False,
    )
    assert ended.returncode == ExitCode.INTERNAL
    assert "stuck_in_the_model" in ended.stderr
    assert "the model thread hangs" in ended.stderr
