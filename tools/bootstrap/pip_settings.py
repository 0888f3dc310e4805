# SPDX-License-Identifier: Apache-2.0
"""This machine's pip settings for index and network, which uv and image builds use too."""

import re
import subprocess
from pathlib import Path
from typing import Final

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
