"""Lint the Helm charts, with the Helm that the test cluster uses.

python -m hack.charts
"""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Final

from hack.cluster import ClusterError, program
from hack.cluster.binaries import ensure
from hack.cluster.toolchain import HELM

CHARTS: Final = Path(__file__).resolve().parent.parent / "charts"


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        ensure((HELM,))
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    charts = sorted(path.parent for path in CHARTS.glob("*/Chart.yaml"))
    return subprocess.run([program("helm"), "lint", "--strict", *charts], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
