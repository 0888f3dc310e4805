"""SIGTERM and SIGINT. As process 1 of a container, a signal without a handler is ignored."""

import signal
import threading
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGTERM, signal.SIGINT)


def stop_event() -> threading.Event:
    """An event that a signal sets, for a stage that saves its state first."""
    stop = threading.Event()

    def handle(_signal: int, _frame: FrameType | None) -> None:
        # Event.set() takes a lock that the interrupted main thread may hold just now.
        threading.Thread(target=stop.set, name="stop").start()

    for ending in ENDING:
        signal.signal(ending, handle)
    return stop


def end_at_once() -> None:
    """Let a signal end the process, with what `finally` has to clean up; exit code 128 + its number."""

    def handle(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    for ending in ENDING:
        signal.signal(ending, handle)
