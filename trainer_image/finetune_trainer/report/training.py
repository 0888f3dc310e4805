# SPDX-License-Identifier: Apache-2.0
"""Content of the training page: its verdict, its figures, the chart of losses, and the learning curve.

A curve is `{validationRows, outlook, points}`. A point has `share`, `rows`, `loss` with `lossLow` and
`lossHigh`, `gain` with `gainLow` and `gainHigh`, and `problem`; each but the first two may be None.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_trainer.report.document import BOTTOM, LEFT, TICKS_ACROSS, TOP, WIDTH, Document, Tick, compact
from finetune_trainer.report.verdicts import ReportVerdict, count_noun, number

REPORT_NAME: Final = "report.json"
"""The report in the folder of the train stage, as JSON."""
MIN_DIGITS = 3
MAX_COLORS: Final = 8
"""Colors of runs in `losses.svg.jinja`."""


@dataclass(frozen=True, slots=True)
class Dot:
    """Point of one loss."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """Losses of one split of a run.

    Attributes:
        name: CSS classes.
        split: `train` or `validation`.
        label: name for a legend.
        path: value of an SVG polyline's `points`.
    """

    name: str
    split: str
    label: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class LossChart:
    """Everything that the page draws."""

    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    mark: float | None
    """Position of the step with the best weights; None if it is the last step."""


def training_verdict(report: Document) -> ReportVerdict:
    """Verdict about a run that succeeded."""
    steps = count_noun(report["steps"], "step")
    best = next((each for each in report["checkpoints"] if each["best"]), None)
    if report["validationLoss"] is None or best is None:
        return ReportVerdict(
            "good",
            f"{steps}: training loss {loss(report['trainLoss'])}",
            "There are no validation rows, so the last weights count as the best.",
        )
    title = f"{steps}: validation loss {loss(best['validationLoss'])}"
    if report["overfit"]:
        return ReportVerdict(
            "warning",
            title,
            f"Overfitting: after step {number(best['step'])}, the validation loss rose to"
            f" {loss(report['validationLoss'])} while the training loss fell. Use fewer epochs or more rows.",
        )
    detail = f"Step {number(best['step'])} has the best weights."
    if report["stoppedEarly"]:
        detail += " Training stopped early, because the validation loss no longer fell."
    return ReportVerdict("good", title, detail)


def facts(report: Document) -> list[tuple[str, str]]:
    """Names and values of the run's figures."""
    found = [("training loss", loss(report["trainLoss"]))]
    if report["validationLoss"] is not None:
        found.append(("last validation loss", loss(report["validationLoss"])))
    found.append(("tokens", number(report["tokens"])))
    if report["tokensPerSecond"] is not None:
        found.append(("tokens per second", number(report["tokensPerSecond"])))
    if report["restarts"]:
        found.append(("restarts", number(report["restarts"])))
        found.append(("device time repeated", f"{report['lostDeviceSeconds']:.0f} s"))
    return found


SPLITS: Final = {"train": "training", "validation": "validation"}
"""The fields of a report that have the losses, by split."""


def loss_chart(report: Document) -> LossChart:
    """Chart of both splits, from 0 to the highest loss. The report needs at least one training point."""
    best = next((each["step"] for each in report["checkpoints"] if each["best"]), None)
    return _chart([("", "", report)], None if best == report["steps"] else best)


def runs_chart(runs: Mapping[str, Document]) -> LossChart:
    """Chart of both splits of several runs, by name. Each needs a training point and the fields of SPLITS."""
    return _chart(
        [(name, f" run-{number % MAX_COLORS}", report) for number, (name, report) in enumerate(runs.items())],
        None,
    )


def _chart(runs: Sequence[tuple[str, str, Document]], best: int | None) -> LossChart:
    """Chart of runs with their names and CSS classes, and a mark at the step `best`."""
    series = [
        (name, style, split, report[field])
        for name, style, report in runs
        for split, field in SPLITS.items()
        if report[field]
    ]
    steps: int = max(each["step"] for *_, points in series for each in points)
    top: float = _ceiling(max(each["loss"] for *_, points in series for each in points))

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - 5 - LEFT) * step / steps, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / top, 1)

    def line(name: str, style: str, split: str, points: Sequence[dict[str, Any]]) -> Line:
        dots = tuple(
            Dot(x(each["step"]), y(each["loss"]), f"step {each['step']:,}: {loss(each['loss'])}")
            for each in points
        )
        path = " ".join(f"{dot.x},{dot.y}" for dot in dots)
        return Line(f"{split}{style}", split, f"{name} {SPLITS[split]}".lstrip(), path, dots)

    gaps = min(TICKS_ACROSS - 1, steps)
    return LossChart(
        lines=tuple(line(*each) for each in series),
        across=tuple(
            Tick(x(step), compact(step))
            for step in sorted({round(gap * steps / gaps) for gap in range(gaps + 1)})
        ),
        up=tuple(Tick(y(top * part / 4), f"{top * part / 4:.4g}") for part in range(5)),
        mark=None if best is None else x(best),
    )


def loss(value: float | None) -> str:
    """Format a loss with at least three digits, or as a dash if it is None."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.1 or value == 0 else f"{value:.{MIN_DIGITS}g}"


def retention_reason(checkpoint: Document) -> str:
    """Reason for publishing a Checkpoint of this step."""
    flags = [flag for flag in ("best", "final") if checkpoint[flag]]
    return " and ".join(flags) or "kept step"


def _ceiling(value: float) -> float:
    """Round up to a number that an axis can end with: 1, 2, 4 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next((power * digit for digit in (1, 2, 4, 8) if power * digit >= value), power * 10)


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
            title=f"{count_noun(point['rows'], 'row')}: {interval_text(point, 'loss')}",
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
