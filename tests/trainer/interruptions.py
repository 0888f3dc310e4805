"""What happens to a trainer process at an exact moment.

The moment is known from what PyTorch and Python announce by themselves, optimizer steps and accesses to
files: nothing of the trainer is changed for it.
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook


@dataclass(frozen=True)
class Interruption:
    """What happens to a process about to make optimizer step `step`, or to save the state after it.

    Steps are counted from the process's start.
    """

    name: str
    step: int

    def __call__(self) -> None:
        """Let it happen in this process."""
        match self.name:
            case "killed in a step":
                register_optimizer_step_pre_hook(_Countdown(self.step, signal.SIGKILL))
            case "asked to stop":
                register_optimizer_step_pre_hook(_Countdown(self.step, signal.SIGTERM))
            case "killed in a save":
                sys.addaudithook(self._kill_in_save)
            case "killed before the rename":
                sys.addaudithook(self._kill_before_rename)
            case _:
                raise ValueError(self.name)

    def _kill_in_save(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Weights and optimizer are written, the ledger is not."""
        if event == "open" and str(arguments[0]).endswith("/ledger.json"):
            folder = Path(arguments[0]).parent
            if folder.name.startswith(f".step-{self.step}.") and folder.parent.name == "state":
                os.kill(os.getpid(), signal.SIGKILL)

    def _kill_before_rename(self, event: str, arguments: tuple[Any, ...]) -> None:
        """The state is whole, and has not got its name."""
        if event == "os.rename" and str(arguments[1]).endswith(f"/state/step-{self.step}"):
            os.kill(os.getpid(), signal.SIGKILL)


class _Countdown:
    """Sends this process a signal when an optimizer is about to make its step number `step`."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self._left = step
        self._number = number

    def __call__(self, *_: object) -> None:
        self._left -= 1
        if self._left == 0:
            # To this thread: of several, another may get what the process is sent, and handle it later.
            signal.raise_signal(self._number)
