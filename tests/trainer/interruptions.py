# SPDX-License-Identifier: Apache-2.0
"""Interruptions of a trainer process at an exact moment.

PyTorch and Python announce optimizer steps and file accesses by themselves, so the trainer is not changed.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.waiting import eventually

WAIT_SECONDS: Final = 120
LAST_FILE: Final = "ledger.json"


@dataclass(frozen=True)
class Interruption:
    """An interruption before optimizer step `step`, or before the state after it is saved.

    Steps are counted from the process's start.
    """

    name: str
    step: int
    after: Path | None = None
    """A state that must be saved before a step is interrupted; it is written in the background."""
    file: str = LAST_FILE
    """The end of the name of the file that a killed save was about to write."""

    def __call__(self) -> None:
        """Install the interruption in this process."""
        match self.name:
            case "killed in a step":
                register_optimizer_step_pre_hook(_Countdown(self.step, signal.SIGKILL, self.after))
            case "asked to stop":
                register_optimizer_step_pre_hook(_Countdown(self.step, signal.SIGTERM, self.after))
            case "killed in a save":
                sys.addaudithook(self._kill_in_save)
            case "killed before the rename":
                sys.addaudithook(self._kill_before_rename)
            case _:
                raise ValueError(self.name)

    def _kill_in_save(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Kill before a file is written: by default the last one."""
        if event == "open" and str(arguments[0]).endswith(self.file):
            folder = Path(arguments[0]).parent
            if folder.name.startswith(f".step-{self.step}.") and folder.parent.name == "state":
                os.kill(os.getpid(), signal.SIGKILL)

    def _kill_before_rename(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Kill when the state is complete, but not renamed."""
        if event == "os.rename" and str(arguments[1]).endswith(f"/state/step-{self.step}"):
            os.kill(os.getpid(), signal.SIGKILL)


class _Countdown:
    """Sends this process a signal when an optimizer is about to make its step number `step`."""

    def __init__(self, step: int, number: signal.Signals, after: Path | None) -> None:
        self._left = step
        self._number = number
        self._after = after

    def __call__(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            if self._after is not None:
                eventually(f"{self._after}", self._after.exists, WAIT_SECONDS)
            # To this thread: a signal to the process may reach another thread, which handles it later.
            signal.raise_signal(self._number)
