# SPDX-License-Identifier: Apache-2.0
"""Go modules at the versions that the go.mod of a folder pins."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Final

from tools.cluster.commands import run
from tools.cluster.errors import ClusterError

# The version that go.mod of every module requires.
_MIN_GO_VERSION: Final = (1, 26)


def pinned(source: Path, module: str) -> str:
    """Version of a module in the go.mod of the folder `source`, such as v1.37.2.

    Raises:
        ClusterError: go.mod does not name the module.
    """
    text = (source / "go.mod").read_text()
    pin = re.search(rf"^\s*(?:require )?{re.escape(module)} (v\S+)", text, re.MULTILINE)
    if pin is None:
        raise ClusterError(
            f"{source / 'go.mod'} does not pin a version of {module}: run `go get -tool` there"
        )
    return pin.group(1)


def download(source: Path, module: str) -> Path:
    """Read-only folder of a module that the folder `source` pins; its go.sum is checked.

    Raises:
        ClusterError: the Go compiler is missing, or the module could not be downloaded.
    """
    query = ("mod", "download", "-json", f"{module}@{pinned(source, module)}")
    return Path(json.loads(run([go_compiler(), "-C", str(source), *query]))["Dir"])


def go_compiler() -> str:
    """Path of `go` in PATH if it is new enough, otherwise in this Python environment.

    Raises:
        ClusterError: neither has a suitable version.
    """
    for folder in (None, str(Path(sys.executable).parent)):
        found = shutil.which("go", path=folder)
        if found is not None and _go_version(found) >= _MIN_GO_VERSION:
            return found
    version = ".".join(str(part) for part in _MIN_GO_VERSION)
    raise ClusterError(
        f"the build of Kubernetes needs Go {version} or newer: "
        "run this in the environment of `make .venv`, which has it"
    )


def _go_version(go: str) -> tuple[int, ...]:
    """Major and minor version; (0, 0) for a development build."""
    release = re.match(r"go(\d+)\.(\d+)", run([go, "env", "GOVERSION"]))
    return (0, 0) if release is None else (int(release[1]), int(release[2]))
