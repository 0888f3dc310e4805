# SPDX-License-Identifier: Apache-2.0
"""Entry point of the operator. It handles signals before the imports, which take a second."""

import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Run the operator. If the process cannot start or continue, it logs why and exits with code 1."""
    # The kernel ignores a signal without a handler for process 1. The image starts with these signals
    # blocked.
    for number in STOP_SIGNALS:
        signal.signal(number, _exit)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    from finetune_operator.runtime import process  # noqa: PLC0415 - takes a second

    process.main(sys.argv[1:])


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    """End the process at once: it has not started any work."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
