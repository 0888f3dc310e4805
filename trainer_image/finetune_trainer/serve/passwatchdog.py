"""Ends a server whose model thread hangs, so that the kubelet starts it again.

A GPU that stopped answering blocks a call for ever: requests wait, and nothing else of the process is wrong.
The longest pass that works is one over a long prompt on a slow CPU; it takes minutes. No probe of the kubelet
can tell the two apart, and a pod that is only slow must not be restarted.
"""

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import Final

from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.runtime import termination

HANG_SECONDS: Final = 900.0
"""Seconds after which a pass of the model thread counts as hung."""
_MAX_DUMP_SECONDS: Final = 30
"""After these the process ends also where the log or the termination message is what hangs."""

logger = logging.getLogger(__name__)


def end_process(message: str) -> None:
    """Leave the stacks of all threads in the log and the reason as termination message, and end at once."""
    faulthandler.dump_traceback_later(_MAX_DUMP_SECONDS, exit=True)  # with code 1, which is INTERNAL
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    text = f"{FailureReason.INTERNAL}: {message}"
    logger.error(text)
    termination.write(text)
    os._exit(ExitCode.INTERNAL)


class PassWatchdog:
    """A thread that watches the model thread until `stop`.

    Args:
        pass_seconds: seconds that the pass under way has taken; 0 between passes.
        limit_seconds: seconds after which it hangs.
        hung: called once with what is wrong.
    """

    def __init__(
        self,
        pass_seconds: Callable[[], float],
        limit_seconds: float = HANG_SECONDS,
        hung: Callable[[str], None] = end_process,
    ) -> None:
        self._pass_seconds = pass_seconds
        self._limit_seconds = limit_seconds
        self._hung = hung
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while (left := self._limit_seconds - self._pass_seconds()) > 0:
            if self._stopped.wait(left):
                return
        self._hung(
            f"the model thread hangs: one pass over its requests has taken more than {self._limit_seconds:g}"
            " seconds."
            " The container starts again; if it hangs again, see in its log where (every thread's stack is"
            " there), and check its device"
        )
