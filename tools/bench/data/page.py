"""What was measured, as a table, and its place in docs/benchmarks.md."""

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
    """One line a program: the medians of its rounds, but the highest peak. `size` is the file's, in bytes."""
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
        ("", "rows/s", "MB/s", "peak memory, MiB", "s", "processor time, s", "rows left"),
        tuple(lines),
    )


def write(page: Path, table: Sheet) -> None:
    """Put the table in place of what stands between the markers of `page`.

    Raises:
        BenchError: the page has no markers.
    """
    put(page, BEGIN, [table], f"datasets {version('datasets')}")
