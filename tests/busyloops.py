# SPDX-License-Identifier: Apache-2.0
"""Other programs that use the processors of this machine."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager


@contextmanager
def busy_loops(number: int = 2) -> Iterator[None]:
    """Programs that use as much processor time as they get, during the block."""
    with ExitStack() as ended:
        for _ in range(number):
            loop = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            ended.callback(loop.wait)
            ended.callback(loop.kill)
        yield
