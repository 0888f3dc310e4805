# SPDX-License-Identifier: Apache-2.0
"""Make build/docs/venv match constraints/docs.txt: the generator of the site and its theme.

python3 -m tools.bootstrap.docs

The environment is separate from .venv, because no test needs these packages. The command does nothing when
the pins are unchanged.
"""

import hashlib
import subprocess
import sys
from typing import Final

from tools.bootstrap.uv import ROOT, Uv

VENV: Final = ROOT / "build" / "docs" / "venv"
STAMP: Final = VENV / "content-key"
DEPENDENCIES: Final = ROOT / "constraints" / "docs.txt"


def main() -> int:
    key = hashlib.sha256(DEPENDENCIES.read_bytes()).hexdigest()
    if STAMP.exists() and STAMP.read_text() == key and (VENV / "bin" / "python").exists():
        return 0
    print("Preparing build/docs/venv …", flush=True)
    uv = Uv()
    try:
        uv.run("venv", "--quiet", "--clear", "--python", sys.executable, VENV)
        uv.run("pip", "sync", "--quiet", "--require-hashes", DEPENDENCIES, VIRTUAL_ENV=str(VENV))
    except subprocess.CalledProcessError as error:
        print(f"The environment build/docs/venv is incomplete: {error}", file=sys.stderr)
        return 1
    STAMP.write_text(key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
