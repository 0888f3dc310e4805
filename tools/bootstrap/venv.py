# SPDX-License-Identifier: Apache-2.0
"""Make .venv match constraints/dev.txt, with the project itself as an editable package.

python3 -m tools.bootstrap.venv

The command does nothing when the pins and the project's metadata are unchanged.
"""

import fcntl
import hashlib
import subprocess
import sys
from typing import Final

from tools.bootstrap.uv import PINS, ROOT, Uv, cache_directory

VENV: Final = ROOT / ".venv"
STAMP: Final = VENV / "content-key"
DEPENDENCIES: Final = ROOT / "constraints" / "dev.txt"


def content_key() -> str:
    """Hash of everything that determines the environment."""
    digest = hashlib.sha256()
    for path in (PINS, DEPENDENCIES, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current() -> bool:
    """Whether .venv was made from the present pins and its interpreter exists."""
    return STAMP.exists() and STAMP.read_text() == content_key() and (VENV / "bin" / "python").exists()


def make() -> None:
    """Create or update .venv.

    Raises:
        subprocess.CalledProcessError: a tool failed; its message is on the terminal.
    """
    print("Preparing .venv (downloads about 3 GB the first time, later only changes) …", flush=True)
    uv = Uv()
    target = {"VIRTUAL_ENV": str(VENV)}
    STAMP.unlink(missing_ok=True)
    if not (VENV / "bin" / "python").exists():
        uv.run("venv", "--quiet", "--clear", "--python", sys.executable, VENV)
    uv.run("pip", "sync", "--require-hashes", DEPENDENCIES, **target)
    uv.run("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".", **target)
    STAMP.write_text(content_key())


def main() -> int:
    if is_current():
        return 0
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            make()
        except subprocess.CalledProcessError as error:
            print(f"The environment .venv is incomplete: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
