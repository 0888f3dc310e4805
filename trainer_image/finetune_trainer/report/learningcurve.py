# SPDX-License-Identifier: Apache-2.0
"""The learning curve of a run on its page: the geometry of its chart, and the texts of its table.

A curve is `{validationRows, outlook, points}`. A point has `share`, `rows`, `loss` with `lossLow` and
`lossHigh`, `gain` with `gainLow` and `gainHigh`, and `problem`; each but the first two may be None.
"""

import math
from dataclasses import dataclass

from finetune_trainer.report.document import Document
from finetune_trainer.report.histogram import BOTTOM, LEFT, TOP, WIDTH, Tick, compact
from finetune_trainer.report.verdict import counted, number

TICKS_UP = 5
MARGIN = 0.1
"""Space above and below the points, as a share of their range."""


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """A point with the interval of its loss. Without an interval, `low` and `high` equal `y`."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, slots=True)
class CurveChart:
    """Everything that the page draws. `path` is the value of an SVG polyline's `points`."""

    points: tuple[CurvePoint, ...]
    path: str
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]


def curve_chart(curve: Document) -> CurveChart | None:
    """The losses over the numbers of rows; None if there are fewer than two. The losses do not begin at 0."""
    points = [point for point in curve["points"] if point["loss"] is not None]
    if len(points) < 2:
        return None
    edges = [point[name] for point in points for name in ("loss", "lossLow", "lossHigh")]
    known: list[float] = [edge for edge in edges if edge is not None]
    low, high = min(known), max(known)
    margin = MARGIN * ((high - low) or abs(high) or 1.0)
    bottom, top = max(0.0, low - margin), high + margin
    most: int = points[-1]["rows"]

    def x(rows: int) -> float:
        return round(LEFT + (WIDTH - 12 - LEFT) * rows / most, 1)

    def y(loss: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (loss - bottom) / (top - bottom), 1)

    drawn = tuple(
        CurvePoint(
            x=x(point["rows"]),
            y=y(point["loss"]),
            low=y(point["loss"] if point["lossLow"] is None else point["lossLow"]),
            high=y(point["loss"] if point["lossHigh"] is None else point["lossHigh"]),
            title=f"{counted(point['rows'], 'row')}: {interval_text(point, 'loss')}",
        )
        for point in points
    )
    gap = (top - bottom) / (TICKS_UP - 1)
    digits = max(0, 1 - math.floor(math.log10(gap)))
    return CurveChart(
        points=drawn,
        path=" ".join(f"{point.x},{point.y}" for point in drawn),
        across=tuple(Tick(point.x, compact(each["rows"])) for point, each in zip(drawn, points, strict=True)),
        up=tuple(
            Tick(y(bottom + part * gap), f"{bottom + part * gap:.{digits}f}") for part in range(TICKS_UP)
        ),
    )


def interval_text(point: Document, name: str) -> str:
    """A figure of a point with its interval: `0.412 (0.398 to 0.427)`; a dash if it is None."""
    value, low, high = (point[f"{name}{end}"] for end in ("", "Low", "High"))
    if value is None:
        return "–"
    return _text(value) if low is None or high is None else f"{_text(value)} ({_text(low)} to {_text(high)})"


def share_text(point: Document) -> str:
    """The share of the rows, with a note for the run itself."""
    return "all (this run)" if point["share"] == 1 else f"{100 * point['share']:g} %"


def curve_note(curve: Document) -> str:
    """How the curve was measured."""
    return (
        "Each point is a training on a random part of the rows, with the same settings and number of epochs;"
        " smaller parts are contained in larger ones. Losses are the lowest of each training on"
        f" {number(curve['validationRows'])} validation rows, with 95 % intervals over these rows."
        " The intervals do not cover what another seed would change."
    )


def _text(value: float) -> str:
    return f"{value:.4g}"
