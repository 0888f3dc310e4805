# SPDX-License-Identifier: Apache-2.0
"""python -m tools.docs

Build the site into build/docs/html. A warning of Sphinx, such as a broken link, is an error. Runs in the
environment of `tools.bootstrap.docs`, which has no other dependency of the project.
"""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.docs.staging import stage

ROOT: Final = Path(__file__).resolve().parents[2]
BUILD: Final = ROOT / "build" / "docs"


def main() -> int:
    source, html = BUILD / "source", BUILD / "html"
    shutil.rmtree(source, ignore_errors=True)
    stage(ROOT, source)
    command = (
        *(sys.executable, "-m", "sphinx", "--builder", "html", "--quiet"),
        *("--fail-on-warning", "--keep-going", "--conf-dir", Path(__file__).parent),
        *("--doctree-dir", BUILD / "doctrees", source, html),
    )
    code = subprocess.run(command, check=False).returncode
    if code == 0:
        print(f"Open {(html / 'index.html').relative_to(ROOT)} in a browser.")
    return code


if __name__ == "__main__":
    sys.exit(main())
