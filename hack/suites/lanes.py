"""Commands side by side."""

import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from hack.bootstrap.uv import ROOT

# However this process ends, the kernel ends them too.
_WITH_PARENT: Final = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass(frozen=True)
class Ended:
    """One command: its exit status, and how many seconds it ran."""

    status: int
    seconds: float


def side_by_side(commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Run all at once and wait for all; of several, each line that they print begins with its lane."""
    started = time.monotonic()
    children = [
        subprocess.Popen(
            [*_WITH_PARENT, *command],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE if len(commands) > 1 else None,
            stderr=subprocess.STDOUT if len(commands) > 1 else None,
        )
        for command in commands
    ]

    def follow(number: int, child: subprocess.Popen[str]) -> Ended:
        for line in child.stdout or ():
            sys.stdout.write(f"lane {number}  {line}")
            sys.stdout.flush()
        return Ended(child.wait(), time.monotonic() - started)

    with ThreadPoolExecutor(len(children)) as pool:
        return list(pool.map(follow, range(1, len(children) + 1), children))
