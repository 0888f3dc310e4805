"""The first process of a pod with several accelerators: it starts a process for each, and ends as they end.

torchrun would do the same but for the end: to it a process that has saved its state and leaves is a failure,
for which it ends the others within 30 seconds. Here they agree among themselves.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.outcomes import ExitCode
from finetune_trainer.distributed.rank import LOCAL_RANK_ENV, LOOPBACK, PORT_ENV
from finetune_trainer.runtime import signals

SIGNALLED: Final = 128
"""What a shell adds to the number of the signal that ended a process."""

ABORTED: Final = SIGNALLED + signal.SIGABRT

logger = logging.getLogger(__name__)


def is_launcher(config: TrainConfig, environ: Mapping[str, str]) -> bool:
    """Whether this process is the first of a pod in which several train."""
    return config.devices > 1 and LOCAL_RANK_ENV not in environ


def launch(config: TrainConfig) -> int:
    """Start the processes, hand on signals, and wait for all; returns the exit code they agree on."""
    environ = dict(os.environ)
    if config.nodes == 1:
        environ.setdefault(PORT_ENV, str(_free_port()))
    processes: list[subprocess.Popen[bytes]] = []
    stopping = False

    def hand_on(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True
        for process in processes:
            process.send_signal(signal.SIGTERM)

    for ending in signals.TERMINATION_SIGNALS:
        signal.signal(ending, hand_on)
    for local_rank in range(config.devices):
        process = subprocess.Popen(
            [sys.executable, "-m", "finetune_trainer", *sys.argv[1:]],
            env={**environ, LOCAL_RANK_ENV: str(local_rank)},
        )
        processes.append(process)
        if stopping:
            process.send_signal(signal.SIGTERM)
    codes = [process.wait() for process in processes]
    code = pod_exit_code(codes)
    logger.info("the processes of this pod ended with %s: this one ends with %d", codes, code)
    return code


def pod_exit_code(codes: Sequence[int]) -> int:
    """The exit code of a pod from those of its processes; negative ones are numbers of signals.

    A failure is the pod's, even where the others only lost a peer by it; a lost peer says more than a state
    that was saved.
    """
    told = [_told(code) for code in codes]
    if ExitCode.PEER_LOST in told:  # NCCL aborts a process whose peer is gone
        told = [code for code in told if code != ABORTED]
    usual = (ExitCode.PEER_LOST, ExitCode.PREEMPTED_SAVED, ExitCode.OK)
    failed = [code for code in told if code not in usual]
    return failed[0] if failed else next(code for code in usual if code in told)


def _told(code: int) -> int:
    if code == -signal.SIGTERM:  # before it could handle the signal, and had anything to save
        return ExitCode.PREEMPTED_SAVED
    return code if code >= 0 else SIGNALLED - code


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
