# SPDX-License-Identifier: Apache-2.0
"""Lint the Helm charts with the Helm of the test cluster.

python -m hack.charts
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Final

from tools.bootstrap.skips import skip
from tools.cluster import ClusterError, program
from tools.cluster.toolchain import HELM, GoMissingError, ensure

CHARTS: Final = Path(__file__).resolve().parent.parent / "charts"


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        ensure((HELM,))
    except GoMissingError as error:
        return skip("the charts", f"Helm is not built. {error}")
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    charts = sorted(path.parent for path in CHARTS.glob("*/Chart.yaml"))
    return subprocess.run([program("helm"), "lint", "--strict", *charts], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
