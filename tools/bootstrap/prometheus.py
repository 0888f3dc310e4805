# SPDX-License-Identifier: Apache-2.0
"""Unpack the distribution's Prometheus and promtool into the cache if they are not on PATH.

python3 -m tools.bootstrap.prometheus

The package is not installed, because its scripts would start a server on this machine.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import cache_directory

PACKAGE: Final = "prometheus"
PROGRAMS: Final = ("prometheus", "promtool")


def program(name: str) -> Path | None:
    """Full path of `prometheus` or `promtool`; None if it is neither on PATH nor unpacked."""
    on_path = shutil.which(name)
    if on_path is not None:
        return Path(on_path)
    unpacked = _folder() / name
    return unpacked if unpacked.exists() else None


def unpack() -> None:
    """Download the package from the machine's configured sources, and keep its programs.

    Raises:
        OSError, subprocess.CalledProcessError: a tool is missing or failed; its message is on the terminal.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _download(scratch)
        (package,) = Path(scratch).glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "--extract", package, scratch], check=True)
        for name in PROGRAMS:
            Path(scratch, "usr", "bin", name).rename(folder / name)


def _folder() -> Path:
    return cache_directory().absolute() / "bin" / PACKAGE


def _download(folder: str) -> None:
    # Otherwise apt downloads as a user who may not write to this folder.
    command = ["apt-get", "download", "--quiet=2", "--option=APT::Sandbox::User=root", PACKAGE]
    if subprocess.run(command, cwd=folder, check=False).returncode == 0:
        return
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    subprocess.run([*prefix, "apt-get", "update", "--quiet=2"], stdin=subprocess.DEVNULL, check=True)
    subprocess.run(command, cwd=folder, check=True)


def main() -> int:
    if all(program(name) for name in PROGRAMS):
        return 0
    print(f"Unpacking the distribution package {PACKAGE} for the tests; nothing is installed …", flush=True)
    try:
        unpack()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{error}\nPut {' and '.join(PROGRAMS)} on PATH and run make again.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
