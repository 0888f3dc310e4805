"""Operators that are forked from a process that has imported the operator: a start of Python and its imports
would be a large part of the processor time of each trial."""

import multiprocessing
import os
from pathlib import Path
from typing import Final

from finetune_operator.command import main
from hack.cluster.ports import free_port
from tests.integration.operators import process_environment

_SERVER: Final = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload([__name__])


class ForkedOperator:
    """One process, which has nothing in common with another but the code; see `operators.Operator`."""

    def __init__(self, name: str, kubeconfig: Path, log: Path, environment: dict[str, str]) -> None:
        given = process_environment(name, kubeconfig, free_port(), free_port()) | environment
        self._log = log
        self._process = _SERVER.Process(target=_operate, args=(given, log), name=name, daemon=True)
        self._process.start()

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()


def _operate(environment: dict[str, str], log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    main()
