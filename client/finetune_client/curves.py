# SPDX-License-Identifier: Apache-2.0
"""Loss curves of runs: read from the store or a Checkpoint, drawn in a terminal or as SVG."""

import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from plotext import figure

from finetune_client.backend import Object, parse
from finetune_client.errors import OperationError
from finetune_client.tables import printable
from finetune_operator.api.checkpoint import Checkpoint
from finetune_operator.api.finetune_job import FineTuneJob
from finetune_trainer.report.html_page import losses_picture
from finetune_trainer.report.training import REPORT_NAME

SPLITS: Final = ("training", "validation")
LOSS_UNIT: Final = "loss"
"""Unit of the losses of a Checkpoint, which does not record its objective's."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses of one run.

    Attributes:
        train: step and mean loss of the steps since the previous point.
        validation: step and loss.
        unit: unit of the losses.
        origin: where the points were read.
    """

    run: str
    train: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]
    unit: str
    origin: str

    def to_json(self) -> Object:
        """The curve as JSON types."""
        points = {
            name: [{"step": step, "loss": loss} for step, loss in series]
            for name, series in zip(SPLITS, (self.train, self.validation), strict=True)
        }
        return {"run": self.run, "unit": self.unit, "origin": self.origin, **points}


def curve_of(
    job: FineTuneJob,
    read: Callable[[str], bytes],
    checkpoint: Callable[[str], Object | None],
    on_unread: Callable[[OperationError], None],
) -> Curve:
    """The losses of a run: all points of its report, or if it cannot be read those of its last Checkpoint.

    Args:
        job: the run.
        read: reads a file of the store.
        checkpoint: reads a Checkpoint.
        on_unread: called with the reason if the report cannot be read.

    Raises:
        OperationError: the run has no curve yet, or its Checkpoints were deleted.
    """
    training = job.status.training
    if training is not None and training.report_uri:
        uri = f"{training.report_uri.rpartition('/')[0]}/{REPORT_NAME}"
        try:
            return of_report(job.name, json.loads(read(uri)), uri)
        except OperationError as error:
            on_unread(error)
    if not job.status.checkpoints:
        raise OperationError(
            f"FineTuneJob {job.name} has no loss curve yet: it is stored when training ends{_progress(job)}",
            [f"finetune watch {job.name}"],
        )
    last = max(job.status.checkpoints, key=lambda each: each.step).name
    found = checkpoint(last)
    if found is None:
        raise OperationError(f"Checkpoint {last}, which had the loss curve of {job.name}, was deleted")
    points = parse(Checkpoint, found).spec.loss_curve or ()
    if not points:
        raise OperationError(f"Checkpoint {last} has no loss curve: the report of the run has it")
    return Curve(
        job.name,
        tuple((point.step, point.train) for point in points),
        tuple((point.step, point.validation) for point in points if point.validation is not None),
        LOSS_UNIT,
        f"Checkpoint {last}",
    )


def of_report(run: str, report: Any, origin: str) -> Curve:
    """The losses in a training report (`report.json`)."""
    series = {name: tuple((point["step"], point["loss"]) for point in report[name]) for name in SPLITS}
    return Curve(run, series["training"], series["validation"], report["lossUnit"], origin)


def _progress(job: FineTuneJob) -> str:
    progress = job.status.progress
    if progress is None or progress.stage != "train" or progress.loss is None:
        return ""
    return f" (step {progress.step} of {progress.total_steps}, loss {progress.loss:.4g})"


def draw(curves: Sequence[Curve], width: int, height: int, *, color: bool) -> str:
    """The curves as text, in Braille characters.

    Args:
        curves: losses of one or several runs.
        width: width in characters.
        height: height in lines.
        color: whether to color the lines with terminal codes.
    """
    figure.clear()
    figure.theme("simple" if color else "colorless")
    figure.plot_size(width, height)
    figure.label("optimizer steps", "x")
    figure.label(curves[0].unit, "y")
    points = [point for curve in curves for point in (*curve.train, *curve.validation)]
    steps, losses = zip(*points, strict=True)
    figure.legend(x=max(steps), y=max(losses), ha="right", va="top", relative=True)
    for number, curve in enumerate(curves):
        name = f"{printable(curve.run)} " if len(curves) > 1 else ""
        letter = string.ascii_lowercase[number % len(string.ascii_lowercase)]
        # Without colors, lines differ by their characters.
        markers = ("braille", "braille") if color else ("braille", "*")
        if len(curves) > 1 and not color:
            markers = (letter, letter.upper())
        for split, series, marker in zip(SPLITS, (curve.train, curve.validation), markers, strict=True):
            if series:
                steps, losses = zip(*series, strict=True)
                signal = figure.signal(list(steps), list(losses), marker=marker)
                figure.draw(signal.lines(marker == "braille").label(f"{name}{split}"))
    drawn: str = figure.build().string(colorless=not color)
    return drawn


def picture(curves: Sequence[Curve]) -> str:
    """The curves as an SVG document, by the charts of the training page."""
    return losses_picture({curve.run: curve.to_json() for curve in curves}, curves[0].unit)
