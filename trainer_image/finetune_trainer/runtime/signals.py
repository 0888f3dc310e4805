"""SIGTERM and SIGINT, at every moment of a process's life.

As process 1 of a container, a signal without a handler is ignored, and the kubelet sends it once. A blocked
one waits, so the image starts Python with these blocked. Then a handler is set before anything is imported
that takes time; this module imports nothing of that kind.
"""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

TERMINATION_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
EXIT_CODE_NOTHING_DONE: Final = 20
"""`ExitCode.PREEMPTED_SAVED`, whose module is one of those that take time."""
MAX_EXIT_SECONDS: Final = 10.0
"""Within these a process ends that has nothing to save, also where it hangs in a call."""

logger = logging.getLogger(__name__)


class Preempted(BaseException):
    """SIGTERM arrived and everything needed to go on is in the store.

    Not an Exception, as KeyboardInterrupt is none: it may be raised anywhere, and a library that catches
    whatever goes wrong in its own work must not take it for that.
    """


def exit_before_start() -> None:
    """Until another handler is set, let a signal end the process, which has not done anything yet.

    One that arrived before counts too.
    """

    def handle(_number: int, _frame: FrameType | None) -> NoReturn:
        os._exit(EXIT_CODE_NOTHING_DONE)

    _set(handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATION_SIGNALS)


def exit_on_signal() -> None:
    """Let a signal end the process, with what `finally` has to clean up; exit code 128 + its number."""

    def handle(number: int, _frame: FrameType | None) -> NoReturn:
        overdue = threading.Timer(MAX_EXIT_SECONDS, os._exit, (128 + number,))
        overdue.daemon = True
        overdue.start()
        raise SystemExit(128 + number)

    _set(handle)


class Stop(threading.Event):
    """Set by the first signal once `listening`.

    Then a stage ends in one of two ways. Where a new process would begin from the same point, Preempted is
    raised in the main thread wherever that is. After `hold`, the stage itself saves first and raises it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._arrived = False
        self._raises = False
        self._forces = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals from here on; Preempted is raised in the block only. For the main thread."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reading,), name="stop", daemon=True).start()
        self._raises = True
        _set(self._handle)
        try:
            yield
        finally:
            self._raises = False

    def is_set(self) -> bool:
        """Whether a signal arrived; in the main thread true at once, in others when `wait` ends."""
        return self._arrived or super().is_set()

    def hold(self) -> None:
        """From here on there is something to save, and a signal only sets the event."""
        self._raises = self._forces = False

    def release(self) -> None:
        """What there was to save is in the store. Raises Preempted after a signal.

        It may still be on its way there, so that the process is not ended by force.
        """
        self._raises = True
        if self._arrived:
            raise Preempted

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        first, self._arrived = not self._arrived, True
        if first and self._raises:
            raise Preempted

    def _watch(self, reading: int) -> None:
        """Notice a signal also while a call keeps the main thread from handling it.

        Not the handler sets the event: `set` takes a lock that the interrupted main thread may hold just now.
        """
        while os.read(reading, 1)[0] not in TERMINATION_SIGNALS:
            pass
        self.set()
        # For ever is not long: the main thread ends the process.
        threading.Event().wait(MAX_EXIT_SECONDS)
        if self._forces:
            logger.info("stopped by a signal %g seconds ago, and nothing has to be saved", MAX_EXIT_SECONDS)
            os._exit(EXIT_CODE_NOTHING_DONE)


def _set(handle: "signal._HANDLER") -> None:
    for ending in TERMINATION_SIGNALS:
        signal.signal(ending, handle)
