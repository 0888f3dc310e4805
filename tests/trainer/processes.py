# SPDX-License-Identifier: Apache-2.0
"""Runs `python -m finetune_trainer` as a pod does, and reads its results.

`start` forks the process from a server that has already imported everything, so that it starts in
milliseconds. It differs from a new interpreter in what the server did once: imports, reading of environment
variables by libraries, and the hash seed. It also exits without the interpreter's final clean-up. Tests of
these parts use `start_fresh`, which starts an interpreter.
"""

import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import MappingProxyType, TracebackType
from typing import IO, Final, Self

from finetune_trainer.contract.base import Contract
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.results import StageResult
from finetune_trainer.distributed.process_group import LOCAL_RANK_ENV
from tests.forkserver import Forked, preload
from tests.trainer.workbench import Workbench
from tests.waiting import eventually

TIMEOUT_SECONDS: Final = 300
"""Only broken processes reach this timeout."""
MODULE: Final = "finetune_trainer"
LOADED: Final = "tests.trainer.loaded"
THREADS_ENV: Final = "OMP_NUM_THREADS"
PAUSE_SECONDS: Final = 0.002
"""Shorter than a step of the tiny model."""

preload(LOADED, __name__)


def without_launcher(processes: int) -> dict[str, str]:
    """Environment of a pod whose first process trains itself, so that a test can interrupt it.

    The only process of a run has no launcher and no rank: with one, accelerate would wait for others.
    """
    return {LOCAL_RANK_ENV: "0"} if processes > 1 else {}


@dataclass(frozen=True)
class Ended:
    """Logs and exit code of a process; the code is minus the number of the signal that ended it, if any."""

    code: int
    logs: list[dict[str, str]]

    @property
    def messages(self) -> list[str]:
        """Messages of the logs, without levels and times."""
        return [line["message"] for line in self.logs]

    @property
    def termination_message(self) -> str:
        """Termination message, which a process outside a pod logs."""
        prefix = "termination message: "
        messages = [message for message in self.messages if message.startswith(prefix)]
        assert len(messages) == 1, self.logs
        return messages[0].removeprefix(prefix)

    @property
    def result(self) -> StageResult:
        result = StageResult.parse(self.termination_message)
        assert result is not None, self.termination_message
        return result


@dataclass(frozen=True)
class Process:
    """A started process. As a context manager it is killed after the block."""

    _process: subprocess.Popen[bytes] | Forked
    _written: IO[bytes]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """Standard output so far."""
        file = self._written.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    @property
    def code(self) -> int | None:
        """Exit code; None while the process runs."""
        return self._process.poll()

    def read_until(self, text: str) -> str:
        """Wait until the output contains `text`. Returns the whole output."""

        def written() -> str | None:
            ended = self.code is not None
            output = self.output
            assert text in output or not ended, f"it ended without {text!r}: {output[-4000:]}"
            return output if text in output else None

        return eventually(repr(text), written, TIMEOUT_SECONDS, lambda: self.output[-4000:], PAUSE_SECONDS)

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """Wait for the exit code."""
        try:
            return self._process.wait(TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still running after {TIMEOUT_SECONDS} s: {self.output[-4000:]}") from error

    def finish(self) -> Ended:
        """Wait for exit code and logs. The output must contain only logs."""
        code = self.wait()
        return Ended(code, [json.loads(line) for line in self.output.splitlines()])

    def kill(self) -> int:
        """Kill the process as the kernel does. Returns the exit code."""
        self.send_signal(signal.SIGKILL)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.kill()
        self._written.close()


def start(
    config: Contract | str,
    *arguments: str,
    arm: Callable[[], None] | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    is_first: bool = False,
) -> Process:
    """Start a trainer process with a config and `environ` in its environment.

    `arguments` are those of the command line. `arm`, a function or an object that can be pickled, is called
    in the process before it starts. `is_first`: like process 1 of a container, it ignores SIGTERM without a
    handler.
    """
    return _fork(_run_command, _environment(config, environ), arguments, arm, is_first)


def start_function(function: Callable[..., None], *arguments: object) -> Process:
    """Start a process with the imports of a trainer process, which only calls a function."""
    return _fork(_call, dict(os.environ), function, arguments)


def start_fresh(
    config: Contract | str,
    *arguments: str,
    memory_bytes: int | None = None,
    environ: Mapping[str, str] = MappingProxyType({}),
    is_first: bool = False,
) -> Process:
    """Like `start`, with a new interpreter. `arguments` replace the arguments of the interpreter."""
    written = tempfile.TemporaryFile()  # noqa: SIM115 - it belongs to the process
    process = subprocess.Popen(
        [sys.executable, *(arguments or ("-m", MODULE))],
        env=_environment(config, environ),
        stdout=written,
        preexec_fn=_ignore_sigterm if is_first else None,  # noqa: PLW1509 - no thread is needed in it
    )
    if memory_bytes is not None:
        resource.prlimit(process.pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    return Process(process, written)


def run(config: Contract | str, *arguments: str, arm: Callable[[], None] | None = None) -> Ended:
    """Run a trainer process from start to end."""
    with start(config, *arguments, arm=arm) as process:
        return process.finish()


def run_fresh(config: Contract | str, *arguments: str, memory_bytes: int | None = None) -> Ended:
    """Run a trainer process from start to end, with a new interpreter."""
    with start_fresh(config, *arguments, memory_bytes=memory_bytes) as process:
        return process.finish()


def wait_for_state(bench: Workbench, config: TrainConfig, name: str) -> None:
    """Wait until a run has saved the state `name`, such as `step-4`."""
    eventually("a saved state", lambda: name in bench.states(config), TIMEOUT_SECONDS, pause=PAUSE_SECONDS)


def _environment(config: Contract | str, more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, CONFIG_ENV: config if isinstance(config, str) else config.to_json(), **more}


def _fork(function: Callable[..., None], *arguments: object) -> Process:
    written = tempfile.TemporaryFile()  # noqa: SIM115 - it belongs to the process
    # multiprocessing passes the file descriptor of a Connection.
    with Connection(os.dup(written.fileno()), readable=False) as connection:
        return Process(Forked(function, connection, *arguments), written)


def _run_command(
    connection: Connection,
    environ: dict[str, str],
    arguments: tuple[str, ...],
    arm: Callable[[], None] | None,
    is_first: bool,
) -> None:
    if is_first:
        _ignore_sigterm()
    _begin(connection, environ)
    sys.argv = [MODULE, *arguments]
    if arm is not None:
        arm()
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)


def _call(
    connection: Connection,
    environ: dict[str, str],
    function: Callable[..., None],
    arguments: tuple[object, ...],
) -> None:
    _begin(connection, environ)
    function(*arguments)


def _begin(connection: Connection, environ: dict[str, str]) -> None:
    """Give this process the output and environment that it would have if it had been started with them."""
    if LOADED not in sys.modules:
        importlib.import_module(LOADED)  # the server hides why its import failed
        raise ImportError(f"{LOADED} was not preloaded: start pytest in the root of the repository")
    os.dup2(connection.fileno(), 1)
    connection.close()
    sys.stdout = os.fdopen(1, "w", buffering=1, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(environ)
    tempfile.tempdir = None
    if THREADS_ENV in environ:  # PyTorch read it while loading
        import torch

        torch.set_num_threads(int(environ[THREADS_ENV]))


def _ignore_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
