"""Start of the operator; handles signals before it imports what takes time."""

import os
import signal
from types import FrameType
from typing import Final, NoReturn

ENDING: Final = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Entry point; exits 1, with a word on why, where the process cannot start or go on."""
    # As process 1 of a container, a signal without a handler is ignored; the image starts with it blocked.
    for ending in ENDING:
        signal.signal(ending, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    from finetune_operator.runtime import cli  # noqa: PLC0415 - takes a second

    cli.main()


def _end(number: int, _frame: FrameType | None) -> NoReturn:
    """End the process, which has not done anything yet."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
