# SPDX-License-Identifier: Apache-2.0
"""Loss curves: where they are read, and how they are drawn."""

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from finetune_client.curves import Curve, curve_of, draw, picture
from finetune_client.errors import OperationError
from finetune_operator.api.finetune_job import FineTuneJob
from tests.mergepatch import merged
from tests.unit.client.decidedobjects import MemoryBackend, golden, run_after

FOLDER = "pvc://artifacts/runs/u/train"
REPORT = {
    "lossUnit": "nats per token",
    "training": [{"step": 1, "steps": 1, "loss": 3.0}, {"step": 2, "steps": 1, "loss": 2.0}],
    "validation": [{"step": 2, "epochs": 1, "loss": 2.5}],
}
POINTS = [{"step": 20, "train": 1.5}, {"step": 40, "train": 1.0, "validation": 1.25}]


def job(**status: Any) -> FineTuneJob:
    training = {"steps": 2, "reportUri": f"{FOLDER}/report.html"}
    patch = {"status": {"training": training, **status}}
    return FineTuneJob.model_validate(merged(run_after("run-ends-promoted"), patch))


def read(run: FineTuneJob, backend: MemoryBackend) -> tuple[Curve, list[OperationError]]:
    unread: list[OperationError] = []
    curve = curve_of(run, backend.read, lambda name: backend.get("Checkpoint", name), unread.append)
    return curve, unread


def recorded(points: Any = POINTS) -> dict[str, Any]:
    return golden("run-on-cpus", "Checkpoint/tickets-v1-0b5e7-40-cccccccc", {"spec": {"lossCurve": points}})


def test_all_points_are_in_the_report_next_to_the_training_page() -> None:
    backend = MemoryBackend(files={f"{FOLDER}/report.json": json.dumps(REPORT).encode()})
    curve, unread = read(job(), backend)
    assert curve.train == ((1, 3.0), (2, 2.0))
    assert curve.validation == ((2, 2.5),)
    assert (curve.unit, unread) == ("nats per token", [])


def test_where_the_store_cannot_be_read_the_curve_is_that_of_the_last_checkpoint() -> None:
    curve, unread = read(job(), MemoryBackend(recorded()))
    assert curve.train == ((20, 1.5), (40, 1.0))
    assert curve.validation == ((40, 1.25),)
    assert curve.origin == "Checkpoint tickets-v1-0b5e7-40-cccccccc"
    assert "only its pods reach" in str(unread[0])


def test_a_run_that_trains_has_no_curve_yet_and_says_its_last_loss() -> None:
    progress = {"stage": "train", "step": 30, "totalSteps": 96, "loss": 0.4123}
    with pytest.raises(OperationError, match=r"no loss curve yet.* \(step 30 of 96, loss 0.4123\)"):
        read(job(training=None, checkpoints=None, progress=progress), MemoryBackend())


@pytest.mark.parametrize(
    ("backend", "message"),
    [(MemoryBackend(), "was deleted"), (MemoryBackend(recorded(None)), "has no loss curve")],
)
def test_a_missing_checkpoint_or_curve_is_named(backend: MemoryBackend, message: str) -> None:
    with pytest.raises(OperationError, match=message):
        read(job(), backend)


def curves(count: int = 1) -> list[Curve]:
    points = tuple((step, 3.0 / step) for step in range(1, 40))
    return [Curve(f"run-{number}", points, ((39, 0.5),), "nats per token", "") for number in range(count)]


def test_without_a_terminal_a_curve_is_drawn_without_codes() -> None:
    drawn = draw(curves(), 80, 16, color=False)
    assert "\x1b" not in drawn
    assert len(drawn.splitlines()) == 16
    for text in ("training", "validation", "optimizer steps", "nats per token"):
        assert text in drawn
    assert any("⠀" < character <= "⣿" for character in drawn)


def test_the_runs_of_a_plot_are_told_apart_with_and_without_colors() -> None:
    plain = draw(curves(2), 80, 16, color=False)
    assert "a run-0 training" in plain
    assert "b run-1 training" in plain
    assert "\x1b[" in draw(curves(2), 80, 16, color=True)


def test_the_picture_is_an_svg_document_with_a_line_per_run_and_split() -> None:
    root = ElementTree.fromstring(picture(curves(2)))  # noqa: S314 - our own document
    space = {"svg": "http://www.w3.org/2000/svg"}
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    lines = root.findall("svg:polyline", space)
    assert [line.get("class") for line in lines] == [
        "line train run-0",
        "line validation run-0",
        "line train run-1",
        "line validation run-1",
    ]
    texts = [text.text for text in root.findall("svg:text", space)]
    assert {"run-0 training", "run-1 validation", "nats per token"} <= set(texts)
