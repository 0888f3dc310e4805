"""How this machine's pip reaches its index, so that uv and image builds reach it the same way."""

import re
import subprocess
from pathlib import Path
from typing import Final

KEPT: Final = ("cert", "extra-index-url", "index-url", "proxy", "retries", "timeout", "trusted-host")
_SETTING: Final = re.compile(r"(?:global|install|:env:)\.(?:default-)?([a-z-]+)='(.*)'")


def pip_settings(python: Path) -> dict[str, str]:
    """The settings about the index and the network of the pip of `python`, environment included.

    Raises:
        subprocess.CalledProcessError: that Python has no pip.
    """
    listing = subprocess.run(
        [python, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    found = (_SETTING.fullmatch(line) for line in listing.splitlines())
    return {match[1]: match[2] for match in found if match and match[1] in KEPT}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The same settings as the environment variables of uv, which does not read pip's files."""
    names = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "cert": "SSL_CERT_FILE"}
    return {variable: settings[name] for name, variable in names.items() if name in settings}
