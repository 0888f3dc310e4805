# SPDX-License-Identifier: Apache-2.0
"""Forks stages, so that a program that runs several of them on one machine imports PyTorch once.

A stage that uses CUDA needs an interpreter of its own: an import may initialize CUDA, which no fork can use.
For Linux. Run as `python -m finetune_trainer.entrypoint.fork_server DESCRIPTOR` with one end of a socket pair
of type SOCK_SEQPACKET.
"""

import fcntl
import gc
import importlib
import json
import os
import selectors
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from finetune_trainer.runtime import signals

PRELOADED: Final = {
    "preflight": "finetune_trainer.preflight.stage",
    "train": "finetune_trainer.train.stage",
    "evaluate": "finetune_trainer.evaluate.stage",
    "serve": "finetune_trainer.serve.app",
}
"""Module of each stage that imports PyTorch."""
THREADS_ENV: Final = "OMP_NUM_THREADS"
MAX_REQUEST_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """A stage to fork. It is one message with three files: the log, the lock and a pipe.

    The stage appends its output to the log, writes its process id to the lock, and keeps it open while it
    lives. The server writes two lines to the pipe: the process id, and the return code as in
    `subprocess.Popen`.

    Attributes:
        config: path of the config.
        environment: variables, in addition to those of the server, for code that has not read them yet.
    """

    config: str
    environment: Mapping[str, str]

    def send(self, server: socket.socket, log: int, lock: int, pipe: int) -> None:
        """Send it to the server at the other end. Raises OSError if the server has ended."""
        content = json.dumps({"config": self.config, "environment": dict(self.environment)})
        socket.send_fds(server, [content.encode()], [log, lock, pipe])


class _Stages:
    """The forked stages that run: the process id and the pipe of each, by its pidfd."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector
        self._running: dict[int, tuple[int, int]] = {}

    def add(self, process: int, pipe: int) -> None:
        _write(pipe, process)
        pidfd = os.pidfd_open(process)
        self._running[pidfd] = process, pipe
        self._selector.register(pidfd, selectors.EVENT_READ)

    def end(self, pidfd: int) -> None:
        """Report the return code of a stage that has ended."""
        self._selector.unregister(pidfd)
        process, pipe = self._running.pop(pidfd)
        _, status = os.waitpid(process, 0)
        _write(pipe, os.waitstatus_to_exitcode(status))
        for descriptor in (pidfd, pipe):
            os.close(descriptor)

    def forget(self) -> None:
        """Close the descriptors, in a fork."""
        for pidfd, (_, pipe) in self._running.items():
            os.close(pidfd)
            os.close(pipe)


def main(descriptor: int) -> int:
    """Fork stages until the program at the other end of the socket pair ends; in a fork, run the stage."""
    from finetune_trainer.entrypoint.process import configure_libraries, run_command_line

    configure_libraries()
    for module in PRELOADED.values():
        # The stage imports it again, and its log has the error.
        with suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # otherwise a collection in a fork copies the server's memory
    with socket.socket(fileno=descriptor) as program:
        request = _fork_for_each_request(program)
    if request is None:
        return 0
    os.environ.update(request.environment)
    if THREADS_ENV in os.environ:
        import torch

        torch.set_num_threads(int(os.environ[THREADS_ENV]))
    sys.argv = ["finetune-trainer", "--config", request.config]
    try:
        return run_command_line()
    finally:
        gc.unfreeze()  # the interpreter collects everything at its end


def _fork_for_each_request(program: socket.socket) -> ForkRequest | None:
    """Return the request in each fork, and None in the server when the program has ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(program, selectors.EVENT_READ)
        stages = _Stages(selector)
        while True:
            for key, _ in selector.select():
                if key.fileobj is not program:
                    stages.end(key.fd)
                    continue
                content, files, *_ = socket.recv_fds(program, MAX_REQUEST_BYTES, 3)
                if not content:
                    return None
                with signals.blocked(), _closed(files[:2]):
                    process = os.fork()
                    if not process:
                        stages.forget()
                        _become_container(*files)
                        signals.exit_before_start()
                        return ForkRequest(**json.loads(content))
                stages.add(process, files[2])


@contextmanager
def _closed(descriptors: Sequence[int]) -> Iterator[None]:
    """Close descriptors after the block."""
    try:
        yield
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _write(pipe: int, number: int) -> None:
    with suppress(BrokenPipeError):
        os.write(pipe, f"{number}\n".encode())


def _become_container(log: int, lock: int, pipe: int) -> None:
    """Take the log as output, a session of its own, and a copy of the lock that its children inherit."""
    os.setsid()
    os.close(pipe)
    os.write(lock, str(os.getpid()).encode())
    for stream in (sys.stdout, sys.stderr):
        os.dup2(log, stream.fileno())
    fcntl.fcntl(lock, fcntl.F_DUPFD, 0)  # the copy is inherited by children


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
