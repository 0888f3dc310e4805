# SPDX-License-Identifier: Apache-2.0
"""Launcher of a pod that trains with other processes: starts one per device and combines their exit codes.

torchrun differs at the end: it treats a process that saved its state and exits as failed, and ends the other
processes within 30 seconds. Here the processes agree when to stop. A pod with one process has a launcher too:
NCCL can abort a process that waits for a lost peer, and an aborted process cannot choose its exit code.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Final

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.distributed.process_group import LOCAL_RANK_ENV, LOOPBACK, PORT_ENV, SILENCE_FILE_ENV
from finetune_trainer.runtime import signals

SIGNALLED: Final = 128
"""Exit codes above this are 128 + the number of a signal, as in a shell."""

ABORTED: Final = SIGNALLED + signal.SIGABRT

logger = logging.getLogger(__name__)


def is_launcher(config: TrainConfig, environ: Mapping[str, str]) -> bool:
    """Whether this process must start the training processes of its pod."""
    return config.nodes * config.devices > 1 and LOCAL_RANK_ENV not in environ


def launch(config: TrainConfig) -> int:
    """Start the processes, forward signals to them, wait for all, and return the exit code of the pod."""
    environ = dict(os.environ)
    if config.nodes == 1:
        environ.setdefault(PORT_ENV, str(_free_port()))
    processes: list[subprocess.Popen[bytes]] = []
    stopping = False

    def forward(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for process in processes:
            process.send_signal(signal.SIGTERM)

    for ending in signals.TERMINATION_SIGNALS:
        signal.signal(ending, forward)
    with TemporaryDirectory() as folder:
        silence_files = [Path(folder) / str(local_rank) for local_rank in range(config.devices)]
        for local_rank, silence_file in enumerate(silence_files):
            process = subprocess.Popen(
                [sys.executable, "-m", "finetune_trainer", *sys.argv[1:]],
                env={
                    **environ,
                    LOCAL_RANK_ENV: str(local_rank),
                    SILENCE_FILE_ENV: str(silence_file),
                },
            )
            processes.append(process)
            if stopping:
                process.send_signal(signal.SIGTERM)
        codes = [process.wait() for process in processes]
        code = pod_exit_code(codes, [file.exists() for file in silence_files])
    logger.info("the processes of this pod ended with exit codes %s; the launcher exits with %d", codes, code)
    return code


def pod_exit_code(codes: Sequence[int], silences: Sequence[bool]) -> int:
    """Combine the exit codes of a pod's processes; negative codes are signal numbers.

    A failure outranks a lost peer, which is often its consequence. A lost peer outranks a saved state. NCCL
    aborts processes that wait for a lost peer. So aborts are lost peers if another process lost one, or if an
    aborted process had a silent peer, as `silences` says of each; otherwise the least of all failures.
    """
    exit_codes = [_exit_code(code) for code in codes]
    silent = any(code == ABORTED and silence for code, silence in zip(exit_codes, silences, strict=True))
    if silent or ExitCode.PEER_LOST in exit_codes:
        exit_codes = [ExitCode.PEER_LOST if code == ABORTED else code for code in exit_codes]
    usual = (ABORTED, ExitCode.PEER_LOST, ExitCode.PREEMPTED_SAVED, ExitCode.OK)
    failed = [code for code in exit_codes if code not in usual]
    return failed[0] if failed else next(code for code in usual if code in exit_codes)


def _exit_code(code: int) -> int:
    if code == -signal.SIGTERM:  # the signal came before the handler was installed; there was nothing to save
        return ExitCode.PREEMPTED_SAVED
    return code if code >= 0 else SIGNALLED - code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
