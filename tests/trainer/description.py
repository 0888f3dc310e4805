# SPDX-License-Identifier: Apache-2.0
"""Describes a process from inside. Has no slow imports, for processes that the interpreter starts."""

import json
import os
import sys
from pathlib import Path

CODE = 7
SIGNALS = ("SigBlk", "SigIgn", "SigCgt")
STANDARD = (1 << 31) - 1
"""Bits of the signals 1 to 31. The C library uses later ones for threads."""


def describe() -> None:
    """Print a description of this process, and exit with `CODE`."""
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines())
    seen = {
        "environment": dict(os.environ),
        "arguments": sys.argv[1:],
        "folder": str(Path.cwd()),
        "terminal": sys.stdout.isatty(),
        "signals": {name: int(status[name], 16) & STANDARD for name in SIGNALS},
        "umask": status["Umask"],
    }
    print(json.dumps(seen), flush=True)
    sys.exit(CODE)
