"""`python -m finetune_trainer` as a pod runs it, and what it leaves."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from finetune_trainer.contract import CONFIG_ENV, Contract, StageResult, TrainConfig
from tests.trainer.workbench import Workbench

TIMEOUT_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """Exit code and logs of a process."""

    code: int
    logs: list[dict[str, str]]

    @property
    def termination_message(self) -> str:
        """The last words; outside a pod they are in the log."""
        prefix = "termination message: "
        messages = [line["message"] for line in self.logs if line["message"].startswith(prefix)]
        assert len(messages) == 1, self.logs
        return messages[0].removeprefix(prefix)

    @property
    def result(self) -> StageResult:
        result = StageResult.parse(self.termination_message)
        assert result is not None, self.termination_message
        return result


def start(
    config: Contract | str,
    *arguments: str,
    memory_bytes: int | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    is_first: bool = False,
) -> subprocess.Popen[str]:
    """Start a trainer process with a config in its environment, and with `environ` beside it.

    `is_first`: as process 1 of a container, it never gets a SIGTERM for which it has no handler.
    """
    text = config if isinstance(config, str) else config.to_json()
    process = subprocess.Popen(
        [sys.executable, *(arguments or ("-m", "finetune_trainer"))],
        env={**os.environ, CONFIG_ENV: text, **environ},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_ignore_sigterm if is_first else None,  # noqa: PLW1509 - no thread is needed in it
    )
    if memory_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    return process


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What a started process writes, up to the line with this text."""
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if text in line:
            break
    return read


def wait_for_state(bench: Workbench, config: TrainConfig, name: str) -> None:
    """Until a run has saved the state `step-N`."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while name not in bench.states(config):
        assert time.monotonic() < deadline, "no state was saved"
        time.sleep(0.01)


def finish(process: subprocess.Popen[str], read: str = "") -> Ended:
    """Wait for the end; `read` is what was taken from its output already."""
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    return Ended(process.returncode, [json.loads(line) for line in (read + output).splitlines()])


def kill(process: subprocess.Popen[str]) -> None:
    """End a process as the kernel does."""
    process.kill()
    process.communicate()


def run(config: Contract | str, *arguments: str, memory_bytes: int | None = None) -> Ended:
    """A trainer process from start to end."""
    return finish(start(config, *arguments, memory_bytes=memory_bytes))
