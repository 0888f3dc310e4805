# SPDX-License-Identifier: Apache-2.0
"""uv, installed by pip into the cache from a constraints file with version and hashes."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.bootstrap.cache import cache_directory
from tools.bootstrap.pip_settings import pip_settings, uv_environment

ROOT: Final = Path(__file__).resolve().parents[2]
PINS: Final = ROOT / "constraints" / "uv.txt"


class Uv:
    """A uv of the pinned version with this machine's index settings."""

    def __init__(self) -> None:
        key = hashlib.sha256(PINS.read_bytes()).hexdigest()[:12]
        home = cache_directory() / f"uv-{key}"
        done = home / "installed"
        python = home / "bin" / "python"
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", "--require-hashes", "--requirement", PINS],
                check=True,
            )
            done.touch()
        self._binary = home / "bin" / "uv"
        self._environment = (
            uv_environment(pip_settings(python))
            | os.environ
            | {"UV_CACHE_DIR": str(cache_directory() / "uv"), "UV_NO_CONFIG": "1"}
        )
        self.pip = python

    def run(self, *arguments: str | Path, **environment: str) -> None:
        """Run uv in the repository's root.

        Raises:
            subprocess.CalledProcessError: uv failed; its message is on the terminal.
        """
        subprocess.run([self._binary, *arguments], cwd=ROOT, env=self._environment | environment, check=True)
