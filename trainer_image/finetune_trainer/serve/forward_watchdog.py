# SPDX-License-Identifier: Apache-2.0
"""Ends a server whose model thread hangs, so that the kubelet restarts it.

A GPU that no longer responds blocks a call forever: requests wait, and the rest of the process works. The
longest valid pass, over a long prompt on a slow CPU, takes minutes. A kubelet probe cannot distinguish the
two, and a pod that is only slow must not be restarted.
"""

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.runtime import termination

HANG_SECONDS: Final = 900.0
"""Duration after which a pass of the model thread counts as hung."""
_MAX_DUMP_SECONDS: Final = 30
"""The process exits after this time even if writing the log or the termination message hangs."""

logger = logging.getLogger(__name__)


def end_process(message: str) -> None:
    """Write the stacks of all threads to the log and the reason to the termination message, then exit."""
    faulthandler.dump_traceback_later(_MAX_DUMP_SECONDS, exit=True)  # with code 1, which is INTERNAL
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    text = f"{FailureReason.INTERNAL}: {message}"
    logger.error(text)
    termination.write(text)
    os._exit(ExitCode.INTERNAL)


class ForwardWatchdog:
    """A thread that watches the model thread until `stop`.

    Args:
        pass_seconds: returns the duration of the current pass so far; 0 between passes.
        limit_seconds: duration after which the pass counts as hung.
        on_hang: called once with the error message.
    """

    def __init__(
        self,
        pass_seconds: Callable[[], float],
        limit_seconds: float = HANG_SECONDS,
        on_hang: Callable[[str], None] = end_process,
    ) -> None:
        self._pass_seconds = pass_seconds
        self._limit_seconds = limit_seconds
        self._on_hang = on_hang
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while (left := self._limit_seconds - self._pass_seconds()) > 0:
            if self._stopped.wait(left):
                return
        self._on_hang(
            f"the model thread hangs: one pass has taken more than {self._limit_seconds:g} seconds. The"
            " container restarts. If it hangs again, check its device, and the stacks of all threads in the"
            " log"
        )
