# SPDX-License-Identifier: Apache-2.0
"""Check the workflows in .github with actionlint.

python -m hack.workflows
"""

import logging
import subprocess
import sys

from tools.bootstrap.skips import skip
from tools.bootstrap.uv import ROOT
from tools.cluster import ClusterError, program
from tools.cluster.toolchain import ACTIONLINT, GoMissingError, ensure


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        ensure((ACTIONLINT,))
    except GoMissingError as error:
        return skip("the workflows", f"actionlint is not built. {error}")
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    # It would use shellcheck and pyflakes where a machine happens to have them.
    options = ("-shellcheck=", "-pyflakes=")
    return subprocess.run([program("actionlint"), *options], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
