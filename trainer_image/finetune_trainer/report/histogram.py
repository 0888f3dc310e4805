# SPDX-License-Identifier: Apache-2.0
"""Geometry of a histogram. The page draws it as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

WIDTH: Final = 360.0
HEIGHT: Final = 190.0
LEFT: Final = 46.0
TOP: Final = 10.0
BOTTOM: Final = 152.0
"""Bottom of the plot in SVG units. The ticks and the name of the axis are below it."""
TICKS_ACROSS: Final = 6
TICKS_UP: Final = 4


@dataclass(frozen=True, slots=True)
class ChartBar:
    """Bar of one bucket."""

    x: float
    y: float
    width: float
    height: float
    title: str
    is_beyond: bool
    """Whether rows in it are truncated."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Label of an axis at one position."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Histogram:
    """Everything that the page draws."""

    bars: tuple[ChartBar, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    mark: float | None
    """Position of the max length that is not truncated. None: beyond the bars, or no limit."""


def histogram(buckets: Sequence[dict[str, Any]], unit: str, limit: int | None = None) -> Histogram:
    """Bars of equal width for one or more buckets `{start, end, rows}` of growing width."""
    step = (WIDTH - LEFT) / len(buckets)
    top = nice_ceiling(max(bucket["rows"] for bucket in buckets))
    bars = []
    for index, bucket in enumerate(buckets):
        height = (BOTTOM - TOP) * bucket["rows"] / top
        # A bucket with few rows next to one with many rows must not look empty.
        height = max(height, 1.0) if bucket["rows"] else 0.0
        last = bucket["end"] - 1
        span = f"{last:,}" if last <= bucket["start"] else f"{bucket['start']:,} to {last:,}"
        rows = f"{bucket['rows']:,} row" + ("" if bucket["rows"] == 1 else "s")
        bars.append(
            ChartBar(
                x=round(LEFT + index * step, 1),
                y=round(BOTTOM - height, 1),
                width=round(max(step - 1.5, 1.0), 1),
                height=round(height, 1),
                title=f"{span} {unit}: {rows}",
                is_beyond=limit is not None and last > limit,
            )
        )
    edges = [bucket["start"] for bucket in buckets] + [buckets[-1]["end"]]
    gaps = min(len(buckets), TICKS_ACROSS - 1)
    ticked = sorted({round(gap * len(buckets) / gaps) for gap in range(gaps + 1)})
    return Histogram(
        bars=tuple(bars),
        across=tuple(Tick(round(LEFT + index * step, 1), compact(edges[index])) for index in ticked),
        up=tuple(
            Tick(round(BOTTOM - (BOTTOM - TOP) * value / top, 1), compact(value)) for value in _steps(top)
        ),
        mark=None if limit is None else _mark_position(edges, limit, step),
    )


def nice_ceiling(value: float) -> int:
    """Round up to a number that an axis can end with: 1, 2, 4, 5 or 8 times a power of ten."""
    power = 10 ** math.floor(math.log10(max(value, 1)))
    return int(next(power * digit for digit in (1, 2, 4, 5, 8, 10) if power * digit >= value))


def compact(value: float) -> str:
    """Format a number for an axis with about two digits: 950, 1.5k, 20k, 3M."""
    for size, letter in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}".removesuffix(".0") + letter if scaled < 10 else f"{scaled:.0f}{letter}"
    return f"{value:g}"


def _steps(top: int) -> list[int]:
    count = next(count for count in range(TICKS_UP, 0, -1) if top % count == 0)
    return [top * index // count for index in range(count + 1)]


def _mark_position(edges: Sequence[int], value: int, step: float) -> float | None:
    for index, (start, end) in enumerate(pairwise(edges)):
        if start <= value < end:
            return round(LEFT + (index + (value - start) / (end - start)) * step, 1)
    return None
