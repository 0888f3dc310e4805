# SPDX-License-Identifier: Apache-2.0
"""The event file in the run's folder, as the reader of TensorBoard reads it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.io_wrapper import IsSummaryEventsFile

from finetune_trainer.report.event_file import EVENT_FILE, event_file
from finetune_trainer.runtime.termination import Preempted
from tests.trainer.workbench import ROWS, RUN, Sheet, Workbench

WRITTEN = 1_800_000_000.25


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by tag. TensorBoard stops at the first record with a wrong checksum."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def points(report: dict[str, Any], name: str) -> list[tuple[int, Any]]:
    """Steps and losses of a split, as precise as the event file."""
    return [(point["step"], pytest.approx(point["loss"], rel=1e-6)) for point in report[name]]


def test_a_run_with_restarts_has_each_point_of_its_report_once(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    config = bench.train_config(dataset=bench.dataset(ROWS, ROWS[:5]))
    for step in (1, 4):
        with pytest.raises(Preempted):
            bench.train(config, Sheet(stop_at=frozenset({step})))
    bench.train(config)

    folder = bench.store.run_folder(RUN, "train").path
    report = json.loads((folder / "report.json").read_text())
    found = scalars(folder)
    assert [step for step, _ in found["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert found == {
        "train/loss": points(report, "training"),
        "validation/loss": points(report, "validation"),
        "train/tokens_per_second": [(6, pytest.approx(report["tokensPerSecond"], rel=1e-6))],
    }


def test_steps_of_any_size_and_values_of_any_size_are_read_back(tmp_path: Path) -> None:
    steps = [1, 127, 128, 16_384, 2**31, 2**62]
    training = [{"step": step, "steps": 1, "loss": 1e-30 * step} for step in steps]
    report = {
        "training": training,
        "validation": [{"step": 128, "epochs": 1, "loss": math.pi}],
        "steps": 2**62,
        "tokensPerSecond": None,
    }
    (tmp_path / EVENT_FILE).write_bytes(event_file(report, WRITTEN))

    assert scalars(tmp_path) == {
        "train/loss": points(report, "training"),
        "validation/loss": points(report, "validation"),
    }
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.FirstEventTimestamp() == WRITTEN
    assert IsSummaryEventsFile(EVENT_FILE)
