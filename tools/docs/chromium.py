# SPDX-License-Identifier: Apache-2.0
"""Chromium of the distribution, which shows the pages that the trainer writes."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import ROOT

OPTIONS: Final = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--virtual-time-budget=2000",
)  # fmt: skip


def program() -> str | None:
    """Path of the program; None if it is not installed."""
    return shutil.which("chromium")


def is_installed() -> bool:
    """Whether the program is installed."""
    return program() is not None


def install() -> None:
    """Install the package unless the program exists.

    Raises:
        subprocess.CalledProcessError: apt-get failed; its message is on the terminal.
    """
    if not is_installed():
        subprocess.run([sys.executable, "-m", "tools.bootstrap.packages", "browser"], cwd=ROOT, check=True)


def show(page: Path, *options: str) -> str:
    """Show a page in a new profile, and return what Chromium writes to standard output.

    Raises:
        FileNotFoundError: Chromium is not installed.
        subprocess.CalledProcessError: it failed.
    """
    found = program()
    if found is None:
        raise FileNotFoundError("chromium is not installed")
    with tempfile.TemporaryDirectory() as profile:
        command = [found, *OPTIONS, f"--user-data-dir={profile}", *options, page.as_uri()]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
