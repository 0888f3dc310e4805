# SPDX-License-Identifier: Apache-2.0
"""Rates of progress reports to the operator and to the log."""

import logging
import time
from dataclasses import dataclass, field

import pytest

from finetune_trainer.contract.results import Progress
from finetune_trainer.runtime.progress import ProgressMeter, Reporter


@dataclass
class Clock:
    now: float = 0

    def __call__(self) -> float:
        return self.now


@dataclass
class Sheet(Reporter):
    seen: list[Progress] = field(default_factory=list)

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    @property
    def steps(self) -> list[tuple[int, int]]:
        return [(progress.step, progress.total_steps) for progress in self.seen]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def test_the_operator_gets_the_first_count_one_a_second_and_the_last(clock: Clock) -> None:
    sheet = Sheet()
    meter = ProgressMeter(100, "{} of {}".format, sheet, unit=10)
    for at, work in ((0, 10), (0.5, 20), (1, 10), (1.5, 50), (1.6, 10)):
        clock.now = at
        meter.add(work)

    assert sheet.steps == [(1, 10), (4, 10), (10, 10)]


def test_an_estimated_total_is_no_end(clock: Clock) -> None:
    sheet = Sheet()
    meter = ProgressMeter(0, "{} of about {} rows".format, sheet)
    for at, total in ((0, 40), (0.1, 10), (0.2, 20), (1, 30)):
        clock.now = at
        meter.add(5, total)
    meter.end()

    assert sheet.steps == [(5, 40), (20, 30), (20, 20)]


def test_the_log_gets_a_line_every_five_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    meter = ProgressMeter(100, "{} of {}".format)
    for at in (0, 4, 5, 9, 10):
        clock.now = at
        meter.add()

    assert caplog.messages == ["3 of 100", "5 of 100"]


def test_a_line_about_the_work_that_begins_counts_for_the_log(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    meter = ProgressMeter(100, "{} of {}".format)
    clock.now = 4
    meter.restart_log()
    for at in (5, 9):
        clock.now = at
        meter.add()

    assert caplog.messages == ["2 of 100"]
