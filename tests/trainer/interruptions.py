"""Trainer processes that something happens to at an exact moment.

They are forked from a server that has loaded PyTorch already, so that one starts in a fraction of a second.
What happens is told by what PyTorch and Python announce by themselves, optimizer steps and accesses to files:
nothing of the trainer is changed for it.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

from torch.optim.optimizer import register_optimizer_step_pre_hook

from finetune_trainer import configuration, logs, process
from finetune_trainer.contract import CONFIG_ENV, Contract
from finetune_trainer.train import stage  # noqa: F401 - loaded once, in the server

TIMEOUT_SECONDS: Final = 300

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Interruption:
    """What happens to a process about to make optimizer step `step`, or to save the state after it.

    Steps are counted from the process's start.
    """

    name: str
    step: int

    def arm(self) -> None:
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
            os.kill(os.getpid(), self._number)


@dataclass(frozen=True)
class Pod:
    """A trainer process, as the one of a pod."""

    process: ForkServerProcess
    log: Path

    @property
    def messages(self) -> list[str]:
        """What it has logged."""
        return [json.loads(line)["message"] for line in self.log.read_text().splitlines() if line[:1] == "{"]

    def ended(self) -> None:
        """Wait for its end."""
        self.process.join(TIMEOUT_SECONDS)
        assert self.process.exitcode is not None, self.messages[-5:]

    @property
    def code(self) -> int:
        """The exit code, or minus the number of the signal that ended it."""
        assert self.process.exitcode is not None
        return self.process.exitcode


@contextmanager
def pod(
    config: Contract,
    log: Path,
    interruption: Interruption | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[Pod]:
    """A running trainer process; it is gone after the block."""
    started = _server.Process(
        target=_run, args=(config.to_json(), str(log), interruption, dict(environ or {})), daemon=True
    )
    started.start()
    try:
        yield Pod(started, log)
    finally:
        started.kill()
        started.join()


def _run(config: str, log: str, interruption: Interruption | None, environ: dict[str, str]) -> None:
    os.environ.update({**environ, CONFIG_ENV: config})
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8")
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
    logs.configure()
    if interruption is not None:
        interruption.arm()
    sys.exit(process.run(configuration.parse(config)))
