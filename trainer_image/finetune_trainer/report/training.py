# SPDX-License-Identifier: Apache-2.0
"""Content of the page about a run's losses: its verdict, its figures, and the geometry of its chart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from finetune_trainer.report.document import Document
from finetune_trainer.report.histogram import BOTTOM, LEFT, TICKS_ACROSS, TOP, WIDTH, Tick, compact
from finetune_trainer.report.verdict import ReportVerdict, counted, number

REPORT_NAME: Final = "report.json"
"""The report in the folder of the train stage, as JSON."""
MIN_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Dot:
    """Point of one loss."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """Losses of one split. `path` is the value of an SVG polyline's `points`."""

    name: str
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
    steps = counted(report["steps"], "step")
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


def loss_chart(report: Document) -> LossChart:
    """Chart of both splits, from 0 to the highest loss. The report needs at least one training point."""
    series = {name: report["training" if name == "train" else name] for name in ("train", "validation")}
    steps: int = max(each["step"] for points in series.values() for each in points)
    top: float = _ceiling(max(each["loss"] for points in series.values() for each in points))

    def x(step: float) -> float:
        return round(LEFT + (WIDTH - 5 - LEFT) * step / steps, 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * value / top, 1)

    def line(name: str, points: Sequence[dict[str, Any]]) -> Line:
        dots = tuple(
            Dot(x(each["step"]), y(each["loss"]), f"step {each['step']:,}: {loss(each['loss'])}")
            for each in points
        )
        return Line(name, " ".join(f"{dot.x},{dot.y}" for dot in dots), dots)

    gaps = min(TICKS_ACROSS - 1, steps)
    best = next((each["step"] for each in report["checkpoints"] if each["best"]), None)
    return LossChart(
        lines=tuple(line(name, points) for name, points in series.items() if points),
        across=tuple(
            Tick(x(step), compact(step))
            for step in sorted({round(gap * steps / gaps) for gap in range(gaps + 1)})
        ),
        up=tuple(Tick(y(top * part / 4), f"{top * part / 4:.4g}") for part in range(5)),
        mark=None if best is None or best == report["steps"] else x(best),
    )


def loss(value: float | None) -> str:
    """Format a loss with at least three digits, or as a dash if it is None."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.1 or value == 0 else f"{value:.{MIN_DIGITS}g}"


def kept_as(checkpoint: Document) -> str:
    """Reason for publishing a Checkpoint of this step."""
    flags = [flag for flag in ("best", "final") if checkpoint[flag]]
    return " and ".join(flags) or "kept step"


def _ceiling(value: float) -> float:
    """Round up to a number that an axis can end with: 1, 2, 4 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next((power * digit for digit in (1, 2, 4, 8) if power * digit >= value), power * 10)
