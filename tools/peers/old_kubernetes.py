# SPDX-License-Identifier: Apache-2.0
"""The schemas of older minor versions of Kubernetes, as the Python clients that are generated from them.

An environment has one version of a package, so each is in a folder of its own in the cache.
"""

import fcntl
import hashlib
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tools.bootstrap.uv import ROOT, Uv, cache_directory
from tools.cluster.toolchain import ensure
from tools.peers.toolchain import CEL_CHECK

PINS: Final = ROOT / "constraints" / "kubernetes.txt"
_PIN: Final = re.compile(r"^kubernetes==(\d+)\.\S+ --hash=\S+$", re.MULTILINE)


def pins() -> dict[str, str]:
    """The requirement of the client of each minor version, such as 1.30, in ascending order."""
    return {f"1.{pin[1]}": pin[0] for pin in _PIN.finditer(PINS.read_text())}


def client(version: str) -> Path:
    """Folder with the package `kubernetes` of a minor version; complete or absent.

    Raises:
        KeyError: no client of this version is pinned.
    """
    key = hashlib.sha256(pins()[version].encode()).hexdigest()[:12]
    return cache_directory() / "peers" / f"kubernetes-{version}-{key}"


def is_installed() -> bool:
    """Whether the cache has the clients of the present pins, and the program that checks rules."""
    return CEL_CHECK.is_built() and all(client(version).exists() for version in pins())


def install() -> None:
    """Download the clients and build the program unless the cache has them.

    Raises:
        ClusterError: the program could not be built.
        subprocess.CalledProcessError: uv failed; its message is on the terminal.
    """
    ensure((CEL_CHECK,))
    folder = cache_directory() / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "kubernetes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for version, pin in pins().items():
            if not client(version).exists():
                _install(pin, client(version))


def _install(pin: str, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    requirements = part / "requirements.txt"
    requirements.write_text(f"{pin}\n")
    options = ("--quiet", "--no-deps", "--require-hashes", "--requirement", requirements)
    Uv().run("pip", "install", *options, "--python", sys.executable, "--target", part)
    part.rename(target)
