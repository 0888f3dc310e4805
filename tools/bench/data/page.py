# SPDX-License-Identifier: Apache-2.0
"""The table of the results, written to docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

from tools.bench.page import put
from tools.bench.program import ProgramResult
from tools.bench.sheet import Sheet

BEGIN: Final = "<!-- Written by make bench-data from here -->"


def sheet(measured: Mapping[str, Sequence[ProgramResult]], rows: int, size: int) -> Sheet:
    """One row per program: medians over its rounds, and the maximum of the peak memory.

    Args:
        measured: results by program.
        rows: number of rows of the source file.
        size: bytes of the source file.
    """
    lines = []
    for name, rounds in measured.items():
        seconds = median(each.seconds for each in rounds)
        lines.append(
            (
                name,
                f"{rows / seconds:,.0f}",
                f"{size / 1e6 / seconds:.1f}",
                f"{max(each.peak_bytes for each in rounds) / (1 << 20):,.0f}",
                f"{seconds:.1f}",
                f"{median(each.processor_seconds for each in rounds):.1f}",
                f"{rounds[0].printed['rows']:,}",
            )
        )
    return Sheet(
        f"{rows:,} rows, {size / 1e9:.2f} GB",
        ("", "rows/s", "MB/s", "peak memory, MiB", "time, s", "processor time, s", "rows kept"),
        tuple(lines),
    )


def write(page: Path, table: Sheet) -> None:
    """Replace the text between the markers of `page` with the table.

    Raises:
        BenchError: the page has no markers.
    """
    put(page, BEGIN, [table], f"datasets {version('datasets')}")
