# SPDX-License-Identifier: Apache-2.0
"""The tables of the results, written to docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

from tools.bench.page import put
from tools.bench.program import ProgramResult
from tools.bench.sheet import Sheet

BEGIN: Final = "<!-- Written by make bench-evaluate from here -->"


def rate(rounds: Sequence[ProgramResult]) -> float:
    """Rows per second of processor time: the median over the rounds."""
    return float(median(len(each.printed["answers"]) / each.printed["seconds"] for each in rounds))


def sheet(workload: str, measured: Mapping[str, Sequence[ProgramResult]]) -> Sheet:
    """One row per program."""
    (ours, peer) = measured.values()
    lines = [
        (
            name,
            f"{rate(rounds):.2f}",
            f"{rate(rounds) / rate(peer):.1f}",
            f"{max(each.peak_bytes for each in rounds) / (1 << 20):,.0f}",
        )
        for name, rounds in measured.items()
    ]
    return Sheet(
        f"{workload}: {len(ours[0].printed['answers'])} rows, {len(ours)} rounds",
        ("", "rows per second of processor time", "relative to one by one", "peak memory, MiB"),
        tuple(lines),
    )


def write(page: Path, sheets: Sequence[Sheet]) -> None:
    """Replace the text between the markers of `page` with the tables.

    Raises:
        BenchError: the page has no markers.
    """
    packages = ("torch", "transformers")
    put(page, BEGIN, sheets, ", ".join(f"{package} {version(package)}" for package in packages))
