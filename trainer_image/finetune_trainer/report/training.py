"""The page of a run's losses: its sentence, its figures, and where the lines of its chart stand."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune_trainer.report.document import Document
from finetune_trainer.report.histogram import BOTTOM, LEFT, TICKS_ACROSS, TOP, WIDTH, Tick, compact
from finetune_trainer.report.verdict import ReportVerdict, counted, number

MIN_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Dot:
    """One loss."""

    x: float
    y: float
    title: str


@dataclass(frozen=True, slots=True)
class Line:
    """Losses of one split; `path` is what an SVG polyline takes."""

    name: str
    path: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class LossChart:
    """All that is drawn."""

    lines: tuple[Line, ...]
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    mark: float | None
    """Where the step with the best weights stands; None: there is no other than the last."""


def training_verdict(report: Document) -> ReportVerdict:
    """Of a run that ended well, what came of it."""
    steps = counted(report["steps"], "step")
    best = next((each for each in report["checkpoints"] if each["best"]), None)
    if report["validationLoss"] is None or best is None:
        return ReportVerdict(
            "good",
            f"{steps}: training loss {loss(report['trainLoss'])}",
            "There were no validation rows, so the last weights are the best known.",
        )
    title = f"{steps}: validation loss {loss(best['validationLoss'])}"
    if report["overfit"]:
        return ReportVerdict(
            "warning",
            title,
            f"After step {number(best['step'])} it rose to {loss(report['validationLoss'])} while the"
            " training loss fell: fewer epochs or more rows help.",
        )
    early = " Training ended early, because it had not become lower." if report["stoppedEarly"] else ""
    return ReportVerdict("good", title, f"The best weights are those of step {number(best['step'])}.{early}")


def facts(report: Document) -> list[tuple[str, str]]:
    """Figures of the run, in words."""
    found = [("training loss", loss(report["trainLoss"]))]
    if report["validationLoss"] is not None:
        found.append(("last validation loss", loss(report["validationLoss"])))
    found.append(("tokens", number(report["tokens"])))
    if report["tokensPerSecond"] is not None:
        found.append(("tokens a second", number(report["tokensPerSecond"])))
    if report["restarts"]:
        found.append(("restarts", number(report["restarts"])))
        found.append(("device time repeated", f"{report['lostDeviceSeconds']:.0f} s"))
    return found


def loss_chart(report: Document) -> LossChart:
    """The lines of both splits, from loss 0 to the highest one; with at least one training point."""
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
    """To three digits at least; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.1 or value == 0 else f"{value:.{MIN_DIGITS}g}"


def kept_as(checkpoint: Document) -> str:
    """Why there is a Checkpoint of this step."""
    flags = [flag for flag in ("best", "final") if checkpoint[flag]]
    return " and ".join(flags) or "kept step"


def _ceiling(value: float) -> float:
    """The next number, at least as large, that an axis can end with: 1, 2, 4 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next((power * digit for digit in (1, 2, 4, 8) if power * digit >= value), power * 10)
