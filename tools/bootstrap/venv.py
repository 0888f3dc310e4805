# SPDX-License-Identifier: Apache-2.0
"""Make .venv match constraints/dev.txt, with the project itself as an editable package.

python3 -m tools.bootstrap.venv [--light | --keep]

The command does nothing when the pins and the project's metadata are unchanged. With --light, the environment
has no PyTorch. With --keep, a light environment stays light.
"""

import fcntl
import hashlib
import re
import subprocess
import sys
from typing import Final

from tools.bootstrap.uv import PINS, ROOT, Uv, cache_directory

VENV: Final = ROOT / ".venv"
STAMP: Final = VENV / "content-key"
DEPENDENCIES: Final = ROOT / "constraints" / "dev.txt"
LIGHT: Final = " light"
"""End of the stamp of an environment without PyTorch."""
HEAVY: Final = re.compile(
    r"accelerate|bitsandbytes|cuda-.+|gemma3-.+|lightning-utilities|lm-eval|nvidia-.+|peft|torch|torchmetrics|triton|trl"
)
"""PyTorch, its libraries for GPUs, packages that do not work without it, and base models for tests."""


def light(pins: str) -> str:
    """The lines of `pins`, with hashes, without the packages in HEAVY."""
    entries = re.split(r"^(?=[a-z0-9])", pins, flags=re.MULTILINE)
    return "".join(entry for entry in entries if not HEAVY.fullmatch(entry.partition("==")[0]))


def content_key() -> str:
    """Hash of everything that determines the environment."""
    digest = hashlib.sha256()
    for path in (PINS, DEPENDENCIES, ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def is_light() -> bool:
    """Whether .venv was made without PyTorch."""
    return STAMP.exists() and STAMP.read_text().endswith(LIGHT)


def is_current(suffix: str) -> bool:
    """Whether .venv was made from the present pins with this end of its stamp, and its interpreter exists."""
    stamp = STAMP.read_text() if STAMP.exists() else ""
    return stamp == content_key() + suffix and (VENV / "bin" / "python").exists()


def make(suffix: str) -> None:
    """Create or update .venv.

    Raises:
        subprocess.CalledProcessError: a tool failed; its message is on the terminal.
    """
    size = "0.6 GB" if suffix == LIGHT else "4 GB"
    print(f"Preparing .venv (downloads about {size} the first time, later only changes) …", flush=True)
    uv = Uv()
    target = {"VIRTUAL_ENV": str(VENV)}
    STAMP.unlink(missing_ok=True)
    if not (VENV / "bin" / "python").exists():
        uv.run("venv", "--quiet", "--clear", "--python", sys.executable, VENV)
    pins = DEPENDENCIES
    if suffix == LIGHT:
        pins = VENV / "light.txt"
        pins.write_text(light(DEPENDENCIES.read_text()))
    uv.run("pip", "sync", "--require-hashes", pins, **target)
    uv.run("pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", ".", **target)
    STAMP.write_text(content_key() + suffix)


def main(arguments: list[str]) -> int:
    suffix = LIGHT if "--light" in arguments or ("--keep" in arguments and is_light()) else ""
    if is_current(suffix):
        return 0
    cache_directory().mkdir(parents=True, exist_ok=True)
    with (cache_directory() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            make(suffix)
        except subprocess.CalledProcessError as error:
            print(f"The environment .venv is incomplete: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
