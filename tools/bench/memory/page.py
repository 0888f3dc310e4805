# SPDX-License-Identifier: Apache-2.0
"""The table of the results, written to docs/benchmarks.md, and the bound that they must keep."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tools.bench.page import put
from tools.bench.sheet import Sheet

BEGIN: Final = "<!-- Written by make bench-memory from here -->"
PHASES: Final = ("start", "save", "resume", "publish")
MAX_SHARE_FACTOR: Final = 1.3
MAX_MORE_BYTES: Final = 300 << 20

Peaks = Mapping[str, Sequence[Mapping[str, Any]]]
"""By phase, one measurement per process: `bytes` above the imports, and `share`, what it must hold."""


def limit(share: int) -> float:
    """The most bytes above its imports that a process with this share may have."""
    return MAX_SHARE_FACTOR * share + MAX_MORE_BYTES


def problems(peaks: Peaks) -> list[str]:
    """Processes and phases that exceed the limit."""
    return [
        f"{phase}, rank {rank}: {_mib(each['bytes'])} MiB exceed {_mib(limit(each['share']))} MiB"
        for phase, ranks in peaks.items()
        for rank, each in enumerate(ranks)
        if each["bytes"] > limit(each["share"])
    ]


def sheet(peaks: Peaks) -> Sheet:
    """One row per phase, one column per process."""
    ranks = range(len(next(iter(peaks.values()))))
    return Sheet(
        f"Full, 300 million parameters, {len(ranks)} processes on CPUs: peak memory, MiB",
        ("", "share of a process", "limit", *(f"rank {rank}" for rank in ranks)),
        tuple(
            (
                phase,
                _mib(max(each["share"] for each in measured)),
                _mib(limit(min(each["share"] for each in measured))),
                *(_mib(each["bytes"]) for each in measured),
            )
            for phase, measured in peaks.items()
        ),
    )


def write(page: Path, table: Sheet) -> None:
    """Replace the text between the markers of `page` with the table.

    Raises:
        BenchError: the page has no markers.
    """
    put(
        page,
        BEGIN,
        [table],
        ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers")),
    )


def _mib(size: float) -> str:
    return f"{size / (1 << 20):,.0f}"
