# SPDX-License-Identifier: Apache-2.0
"""The project's version in the files that repeat it. Its source is `project.version` of pyproject.toml."""

import re
import tomllib
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PACKAGE: Final = ROOT / "operator" / "finetune_operator" / "__init__.py"
# The image has no metadata of the package, and Helm reads literal versions only.
LINES: Final = re.compile(r'^(version: |appVersion: |__version__ = )"?[^"\n]+"?$', re.MULTILINE)


def version() -> str:
    """The version, such as 0.1.0."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return str(project["version"])


def versioned_files() -> dict[Path, str]:
    """Text of every file that repeats the version: the operator's package and the charts."""
    current = version()
    return {
        path: LINES.sub(rf'\g<1>"{current}"', path.read_text())
        for path in (PACKAGE, *sorted(ROOT.glob("charts/*/Chart.yaml")))
    }
