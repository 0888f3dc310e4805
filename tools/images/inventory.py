# SPDX-License-Identifier: Apache-2.0
"""List the content of an image. Runs in the image with its Python, so it imports only the standard library.

python3 -c "$(cat inventory.py)"
"""

import json
import os
import platform
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Final

LICENSE: Final = "License :: "
MOUNTED_FOLDERS: Final = frozenset({"/dev", "/proc", "/run", "/sys"})
"""Folders that are mounted at run time and do not belong to the image."""
MAX_LICENSE_NAME_LENGTH: Final = 80
"""Maximum characters of a license name; longer fields contain the text of the license."""


def python_packages() -> Iterator[dict[str, str]]:
    """Name, version and license of every importable package."""
    for package in distributions():
        yield {
            "name": package.metadata["Name"],
            "version": package.version,
            "license": _license(package),
        }


def debian_packages(status: Path) -> Iterator[dict[str, str]]:
    """Name, version and architecture of every installed package in dpkg's file `status`."""
    for paragraph in status.read_text().split("\n\n"):
        pairs = (line.partition(": ") for line in paragraph.splitlines() if not line.startswith(" "))
        fields = {name: value for name, _, value in pairs}
        if fields.get("Status", "").endswith(" installed"):
            yield {
                "name": fields["Package"],
                "version": fields["Version"],
                "architecture": fields["Architecture"],
            }


def total_bytes(root: str) -> int:
    """Size in bytes of all files below `root`, each inode once."""
    sizes = {}
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders[:] = [each for each in folders if str(folder / each) not in MOUNTED_FOLDERS]
        for file in files:
            found = (folder / file).lstat()
            sizes[found.st_dev, found.st_ino] = found.st_size
    return sum(sizes.values())


def _license(package: Distribution) -> str:
    """The package's SPDX expression, or else the license name in its metadata, which may be empty."""
    metadata = package.metadata
    classifiers = metadata.get_all("Classifier", [])
    classified = [name.rpartition(" :: ")[2] for name in classifiers if name.startswith(LICENSE)]
    stated = metadata["License"] or ""
    named = stated if len(stated) < MAX_LICENSE_NAME_LENGTH and "\n" not in stated else ""
    return metadata["License-Expression"] or named or " or ".join(classified)


if __name__ == "__main__":
    release = platform.freedesktop_os_release()
    inventory = {
        "bytes": total_bytes("/"),
        "distribution": f"{release['ID']}-{release.get('VERSION_ID', '')}",
        "interpreter": platform.python_version(),
        "python": list(python_packages()),
        "debian": list(debian_packages(Path("/var/lib/dpkg/status"))),
    }
    print(json.dumps(inventory))
