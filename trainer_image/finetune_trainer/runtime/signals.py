# SPDX-License-Identifier: Apache-2.0
"""Handles SIGTERM and SIGINT during the whole life of a process.

Process 1 of a container ignores a signal without a handler, and the kubelet sends it once. A blocked signal
stays pending, so the image starts Python with both blocked. The process sets a handler before slow imports.
This module has no slow imports.
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
"""`ExitCode.PREEMPTED_SAVED`, whose module is slow to import."""
MAX_EXIT_SECONDS: Final = 10.0
"""A process without state to save exits within this time, even if it hangs in a call."""

logger = logging.getLogger(__name__)


class Preempted(BaseException):
    """SIGTERM arrived, and the store has everything needed to resume.

    Not an Exception, like KeyboardInterrupt: it may be raised anywhere, and a library that catches its own
    errors must not catch it.
    """


@contextmanager
def blocked() -> Iterator[None]:
    """Block the signals. A trainer process that is started in the block gets them in `exit_before_start`."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATION_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def exit_before_start() -> None:
    """Let a signal end the process, which has done nothing yet, until another handler is set.

    This includes a signal that has already arrived.
    """

    def handle(_number: int, _frame: FrameType | None) -> NoReturn:
        os._exit(EXIT_CODE_NOTHING_DONE)

    _set(handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TERMINATION_SIGNALS)


def exit_on_signal() -> None:
    """Let a signal end the process, after its `finally` blocks, with exit code 128 + its number."""

    def handle(number: int, _frame: FrameType | None) -> NoReturn:
        overdue = threading.Timer(MAX_EXIT_SECONDS, os._exit, (128 + number,))
        overdue.daemon = True
        overdue.start()
        raise SystemExit(128 + number)

    _set(handle)


class Stop(threading.Event):
    """Event that the first signal sets while `listening`.

    A stage then ends in one of two ways. If a new process would start from the same point, Preempted is
    raised in the main thread at once. After `hold`, the stage first saves its state and then raises it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._arrived = False
        self._raises = False
        self._kills = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals from now on. Preempted is raised in the block only. For the main thread."""
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
        """Return whether a signal arrived: in the main thread at once, in others when `wait` ends."""
        return self._arrived or super().is_set()

    def hold(self) -> None:
        """Mark that there is state to save. From now on a signal only sets the event."""
        self._raises = self._kills = False

    def release(self) -> None:
        """Mark that the state is saved. Raises Preempted after a signal.

        The upload of the state may still be running, so the process is not killed.
        """
        self._raises = True
        if self._arrived:
            raise Preempted

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        first, self._arrived = not self._arrived, True
        if first and self._raises:
            raise Preempted

    def _watch(self, reading: int) -> None:
        """Set the event after a signal, even if a call keeps the main thread from handling it.

        The handler must not set the event: `set` takes a lock that the interrupted main thread may hold.
        """
        while os.read(reading, 1)[0] not in TERMINATION_SIGNALS:
            pass
        self.set()
        # Nothing sets this event: the main thread usually ends the process before.
        threading.Event().wait(MAX_EXIT_SECONDS)
        if self._kills:
            logger.info("stopped by a signal %g seconds ago; there is no state to save", MAX_EXIT_SECONDS)
            os._exit(EXIT_CODE_NOTHING_DONE)


def _set(handle: "signal._HANDLER") -> None:
    for ending in TERMINATION_SIGNALS:
        signal.signal(ending, handle)
