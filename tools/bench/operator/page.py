# SPDX-License-Identifier: Apache-2.0
"""Write the tables of the operator's benchmark to docs/benchmarks.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tools.bench.operator.measure import Comparison
from tools.bench.operator.tables import comparison, overview, requests
from tools.bench.page import put
from tools.cluster.toolchain import KUBERNETES

BEGIN: Final = "<!-- Written by make bench-operator from here -->"


def write(page: Path, compared: Sequence[Comparison]) -> None:
    """Replace the tables between the markers of `page`.

    Raises:
        BenchError: the page has no markers.
    """
    sheets = [comparison(compared), overview(compared), *(requests(each.operator) for each in compared)]
    put(page, BEGIN, sheets, f"Kubernetes {KUBERNETES.version}")
