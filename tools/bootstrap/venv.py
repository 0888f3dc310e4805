"""Make .venv hold exactly what constraints/dev.txt says, and the project itself, editable.

python3 -m tools.bootstrap.venv

Does nothing when the pins and the project's metadata have not changed since the last time.
"""

import fcntl
import hashlib
import subprocess
import sys
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.bootstrap.uv import PINS, ROOT, Uv

VENV: Final = ROOT / ".venv"
STAMP: Final = VENV / "content-key"
DEPENDENCIES: Final = ROOT / "constraints" / "dev.txt"


def content_key() -> str:
    """Changes whenever the environment would."""
    digest = hashlib.sha256()
    for path in (PINS, DEPENDENCIES, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_current() -> bool:
    """Whether .venv was made from the present pins and its interpreter is still there."""
    return STAMP.exists() and STAMP.read_text() == content_key() and (VENV / "bin" / "python").exists()


def make() -> None:
    """Create or correct .venv.

    Raises:
        subprocess.CalledProcessError: a tool failed; its own message is on the terminal.
    """
    print("Preparing .venv (the first time downloads about 3 GB; later only what changed) …", flush=True)
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
            print(f"The environment is not complete: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
