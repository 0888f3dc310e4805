# SPDX-License-Identifier: Apache-2.0
"""The table of the results, written to docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

from tools.bench.page import put
from tools.bench.sheet import Sheet

BEGIN: Final = "<!-- Written by make bench-start from here -->"


@dataclass(frozen=True, slots=True)
class Start:
    """One start of the train stage."""

    bytes: int
    """Size of the weights."""
    read_seconds: float
    """Time to read the files of the weights."""
    start_seconds: float
    """Time from the start of the process to the first step."""


def sheet(measured: Mapping[str, Sequence[Start]]) -> Sheet:
    """One row per size: medians over the rounds."""
    rows = []
    for size, rounds in measured.items():
        read = median(each.read_seconds for each in rounds)
        start = median(each.start_seconds for each in rounds)
        rows.append(
            (
                size,
                f"{rounds[0].bytes / 1e9:.1f}",
                f"{read:.1f}",
                f"{start:.1f}",
                f"{start - read:.1f}",
                f"{start / read:.2f}",
            )
        )
    return Sheet(
        f"Start of the train stage, LoRA, weights not in the page cache, {len(next(iter(measured.values())))}"
        " rounds",
        (
            "",
            "weights, GB",
            "s to read them",
            "s to the first step",
            "difference, s",
            "first step relative to reading",
        ),
        tuple(rows),
    )


def write(page: Path, table: Sheet) -> None:
    """Replace the text between the markers of `page` with the table.

    Raises:
        BenchError: the page has no markers.
    """
    packages = ("torch", "transformers", "peft")
    put(page, BEGIN, [table], ", ".join(f"{package} {version(package)}" for package in packages))
