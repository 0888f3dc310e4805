"""Install the distribution packages that the given groups of targets need, after naming them.

python3 -m tools.bootstrap.packages GROUP…

On a terminal it asks once; without one, or with CI=true, it goes ahead.
"""

import os
import shutil
import subprocess
import sys
from typing import Final

GROUPS: Final[dict[str, dict[str, str]]] = {
    "environment": {
        "ca-certificates": "certificates for downloads",
        "python3-venv": "the virtual environment",
    },
    "images": {
        "buildah": "builds container images without a daemon",
        "debian-archive-keyring": "keys of the packages in the base image",
        "gcc": "links the stand-ins for CUDA libraries in the CPU image",
        "libc6-dev": "what gcc links against",
        "mmdebstrap": "makes the base image where no image registry can be reached",
    },
    "cluster": {
        "containernetworking-plugins": "pod network",
        "iproute2": "bridges and addresses",
        "kmod": "the kernel module that shows bridged traffic to services",
        "nftables": "services and masquerading",
        "runc": "runs containers",
    },
}


def missing(packages: list[str]) -> list[str]:
    """Those of `packages` that are not installed."""
    query = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n", *packages],
        capture_output=True,
        text=True,
        check=False,  # it exits 1 when it knows none of a name, which is an answer
    )
    installed = {
        name for name, status in (line.split() for line in query.stdout.splitlines()) if status == "installed"
    }
    return [package for package in packages if package not in installed]


def agreed() -> bool:
    """Whether the user lets us install, asked only where somebody can answer."""
    if os.environ.get("CI") == "true" or not sys.stdin.isatty():
        return True
    return input("Install them now with apt-get? [Y/n] ").strip().lower() in {"", "y", "yes"}


def install(packages: list[str]) -> None:
    """Install `packages` from the machine's own configured sources.

    Raises:
        subprocess.CalledProcessError: apt-get failed; its own message is on the terminal.
    """
    prefix = [] if os.geteuid() == 0 else ["sudo"]
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (
        ["apt-get", "update", "--quiet=2"],
        [*("apt-get", "install", "--yes", "--quiet=2", "--no-install-recommends"), *packages],
    ):
        subprocess.run(prefix + command, env=environment, stdin=subprocess.DEVNULL, check=True)


def main(groups: list[str]) -> int:
    wanted = {name: why for group in groups for name, why in GROUPS[group].items()}
    if shutil.which("dpkg-query") is None:
        print(f"This machine has no dpkg. Make sure that it has: {', '.join(wanted)}.", file=sys.stderr)
        return 0
    lacking = missing(list(wanted))
    if not lacking:
        return 0
    print("Distribution packages that are needed and not installed:")
    for name in lacking:
        print(f"  {name:<28} {wanted[name]}")
    by_hand = f"apt-get install --no-install-recommends {' '.join(lacking)}"
    if not agreed():
        print(f"Then install them yourself and run make again:\n  {by_hand}", file=sys.stderr)
        return 1
    try:
        install(lacking)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"{error}\nInstall them yourself and run make again:\n  {by_hand}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
