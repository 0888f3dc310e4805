# SPDX-License-Identifier: Apache-2.0
"""The cache, and uv: installed by pip into it, with the settings of this machine for index and network."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final


def cache_directory() -> Path:
    """The project's folder in the user's cache; may not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "finetune-operator"


KEPT: Final = ("cert", "extra-index-url", "index-url", "proxy", "retries", "timeout", "trusted-host")
_SETTING: Final = re.compile(r"(?:global|install|:env:)\.(?:default-)?([a-z-]+)='(.*)'")


def pip_settings(python: Path) -> dict[str, str]:
    """Index and network settings of the pip of `python`, including those of the environment.

    Raises:
        subprocess.CalledProcessError: this Python has no pip.
    """
    listing = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = (_SETTING.fullmatch(line) for line in listing.splitlines())
    return {match[1]: match[2] for match in found if match and match[1] in KEPT}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The settings as environment variables of uv, which does not read pip's files."""
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
    return {variable: settings[name] for name, variable in names.items() if name in settings}


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
