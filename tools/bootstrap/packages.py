# SPDX-License-Identifier: Apache-2.0
"""List and install the distribution packages that groups of make targets need.

python3 -m tools.bootstrap.packages [--optional] GROUP…

On a terminal it asks for confirmation once; without a terminal, or in CI, it installs at once. With
--optional it succeeds if it cannot install, and names the packages whose checks are skipped.
"""

import os
import shutil
import subprocess
import sys
from typing import Final

from tools.bootstrap.skips import in_ci, skip

GROUPS: Final[dict[str, dict[str, str]]] = {
    "environment": {
        "ca-certificates": "certificates for downloads",
        "jq": "steps of the release workflow, which the unit tests run",
        "python3-venv": "the virtual environment",
    },
    "images": {
        "buildah": "builds container images without a daemon",
        "debian-archive-keyring": "keys of the packages in the base image",
        "gcc": "links the stubs of CUDA libraries in the CPU image",
        "libc6-dev": "libraries for gcc",
        "mmdebstrap": "builds the base image if no image registry is reachable",
    },
    "cluster": {
        "containernetworking-plugins": "pod network",
        "iproute2": "bridges and addresses",
        "kmod": "loads the kernel module that Services on a bridge need",
        "nftables": "Services and masquerading",
        "runc": "runs containers",
    },
    "peers": {
        "gcc": "links the stubs of CUDA libraries",
        "libc6-dev": "libraries for gcc",
        "libnuma1": "vLLM for CPUs is linked against it",
        "util-linux": "lscpu, which vLLM for CPUs runs",
    },
    "shells": {
        "fish": "tests of completion in fish",
        "zsh": "tests of completion in zsh",
    },
    "browser": {"chromium": "shows the evaluation page"},
}

NO_TERMINAL: Final = "--option=Dpkg::Use-Pty=0"
"""Otherwise apt gives dpkg a terminal, on which it redraws its progress: lines of noise in a log."""


def missing(packages: list[str]) -> list[str]:
    """The `packages` that are not installed."""
    query = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,  # exit status 1 means that a package is unknown
    )
    installed = {
        name for name, status in (line.split() for line in query.stdout.splitlines()) if status == "installed"
    }
    return [package for package in packages if package not in installed]


def agreed() -> bool:
    """Whether the user agrees to the installation; asks only on a terminal."""
    if in_ci() or not sys.stdin.isatty():
        return True
    return input("Install them now with apt-get? [Y/n] ").strip().lower() in {"", "y", "yes"}


def install(packages: list[str]) -> None:
    """Install `packages` from the machine's configured sources.

    Raises:
        subprocess.CalledProcessError: apt-get failed; its message is on the terminal.
    """
    sudo = ["sudo"] if sys.stdin.isatty() else ["sudo", "--non-interactive"]
    prefix = [] if os.geteuid() == 0 else sudo
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "--quiet=2"],
        [*("apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends", NO_TERMINAL), *packages],
    ):
        subprocess.run(prefix + command, env=environment, stdin=subprocess.DEVNULL, check=True)


def main(arguments: list[str]) -> int:
    optional = "--optional" in arguments
    groups = [argument for argument in arguments if argument != "--optional"]
    required = {name: purpose for group in groups for name, purpose in GROUPS[group].items()}
    if shutil.which("dpkg-query") is None:
        print(
            f"This machine has no dpkg. Make sure that these are installed: {', '.join(required)}.",
            file=sys.stderr,
        )
        return 0
    to_install = missing(list(required))
    if not to_install:
        return 0
    print("Required distribution packages that are not installed:")
    for name in to_install:
        print(f"  {name:<28} {required[name]}")
    command = f"apt-get install --no-install-recommends {' '.join(to_install)}"
    try:
        if agreed():
            install(to_install)
            return 0
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
    print(f"Install them yourself and run make again:\n  {command}", file=sys.stderr)
    if not optional:
        return 1
    return max([skip(f"what needs {name}", required[name]) for name in to_install])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
