# SPDX-License-Identifier: Apache-2.0
"""The table of starts of serving pods, written to docs/benchmarks.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Final

from tools.bench.page import put
from tools.bench.sheet import Sheet

BEGIN: Final = "<!-- Written by make bench-model-cache from here -->"


@dataclass(frozen=True, slots=True)
class ServingStart:
    """One start of a serving pod."""

    bytes: int
    """Size of the weights."""
    readable_seconds: float
    """Time from the start of the init container until the engine can read verified weights."""
    token_seconds: float
    """Time from the start of the init container until the first token."""


def sheet(
    measured: Mapping[tuple[str, bool], Sequence[ServingStart]], filled: Mapping[str, float], engine: str
) -> Sheet:
    """One row per size and kind of start: medians over the rounds.

    Args:
        measured: the starts by size, and whether the model is in the cache.
        filled: seconds to fill the cache, by size.
        engine: that of the pods.
    """
    rows = []
    for (size, in_cache), starts in measured.items():
        readable = median(each.readable_seconds for each in starts)
        copied = median(each.readable_seconds for each in measured[size, False])
        rows.append(
            (
                f"{size}, {'read in the cache' if in_cache else 'copied'}",
                f"{starts[0].bytes / 1e9:.1f}",
                f"{filled[size]:.1f}" if in_cache else "",
                f"{readable:.2f}",
                f"{copied / readable:.1f}" if in_cache else "1.0",
                f"{median(each.token_seconds for each in starts):.1f}",
            )
        )
    return Sheet(
        f"Start of a serving pod, engine {engine}, {len(next(iter(measured.values())))} rounds",
        (
            "",
            "weights, GB",
            "s to fill the cache, once",
            "s until verified weights are readable",
            "times faster",
            "s to the first token",
        ),
        tuple(rows),
    )


def write(page: Path, table: Sheet) -> None:
    """Replace the text between the markers of `page` with the table.

    Raises:
        BenchError: the page has no markers.
    """
    packages = ("torch", "transformers", "safetensors")
    put(page, BEGIN, [table], ", ".join(f"{package} {version(package)}" for package in packages))
