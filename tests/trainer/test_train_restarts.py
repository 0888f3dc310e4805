# SPDX-License-Identifier: Apache-2.0
"""Wasted training time: how it is measured, and how much a pod that saves wastes."""

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.results import MAX_REPEATS
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.store import RunFolder
from finetune_trainer.train.states import restarts
from finetune_trainer.train.states.restarts import WASTED_TIME_FILE, WastedTime
from tests.trainer.workbench import RUN, Sheet, Workbench


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    return Workbench(tmp_path)


class Clock:
    """A clock that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Pods:
    """The pods of one run, one after another."""

    def __init__(self, bench: Workbench) -> None:
        self.clock = Clock()
        self.folder: RunFolder = bench.store.run_folder(RUN, "train")
        self.work = WastedTime(self.folder, clock=self.clock)

    def start(self, step: int, rungs: int = 0) -> None:
        """Start a new pod, a day after the last one."""
        self.clock.now += 86_400
        self.work = WastedTime(self.folder, clock=self.clock, rungs=rungs, unix_time=self.clock)
        self.work.begin(step)

    def train(self, seconds: float) -> None:
        """Train in steps of one second."""
        for _ in range(round(seconds)):
            self.clock.now += 1
            self.work.update()

    @property
    def lost(self) -> float:
        return self.work.lost_seconds


@pytest.fixture
def pods(bench: Workbench) -> Pods:
    pods = Pods(bench)
    pods.start(0)
    return pods


def test_time_after_the_last_state_is_lost(pods: Pods) -> None:
    pods.train(20)
    pods.work.saved(4)
    pods.train(30)
    pods.start(4)

    assert pods.lost == 30
    assert pods.work.seconds == 20
    pods.train(30)
    assert (pods.lost, pods.work.seconds) == (30, 50)


def test_a_pod_that_saves_before_it_ends_loses_nothing(pods: Pods) -> None:
    pods.train(25)
    pods.work.saved(5)
    pods.work.flush()
    pods.start(5)

    assert (pods.lost, pods.work.seconds) == (0, 25)


def test_without_a_state_everything_is_lost(pods: Pods) -> None:
    pods.train(40)
    pods.start(0)

    assert (pods.lost, pods.work.seconds) == (40, 0)


def test_losses_of_several_pods_add_up(pods: Pods) -> None:
    for _ in range(3):
        pods.train(10)
        pods.start(0)

    assert pods.lost == 30


def test_each_loss_has_the_times_between_which_the_pods_ended(pods: Pods) -> None:
    pods.train(20)
    pods.work.saved(4)
    pods.train(30)
    ended_at = pods.clock.now
    pods.start(4)
    pods.train(10)
    pods.start(4, rungs=1)
    pods.start(4, rungs=1)

    first, second = pods.work.repeats
    assert (first.after, first.before) == (ended_at, ended_at + 86_400)
    assert (first.device_seconds, first.out_of_memory) == (30, False)
    assert second.before - second.after == 86_400
    assert (second.device_seconds, second.out_of_memory) == (10, True)
    assert pods.lost == 40


def test_the_parts_of_the_lost_time_add_up_to_it(pods: Pods) -> None:
    for _ in range(4):
        pods.clock.now += 10.06
        pods.work.update()
        pods.start(0)

    assert sum(each.device_seconds for each in pods.work.repeats) == pytest.approx(pods.lost, abs=0.01)


def test_the_last_losses_are_kept_one_by_one_and_all_in_the_sum(pods: Pods) -> None:
    for _ in range(MAX_REPEATS + 2):
        pods.train(10)
        pods.start(0)

    assert [each.device_seconds for each in pods.work.repeats] == [10] * MAX_REPEATS
    assert pods.lost == 10 * (MAX_REPEATS + 2)


def test_a_record_of_an_earlier_release_is_read(pods: Pods) -> None:
    record = {"seconds": 50.0, "lost_seconds": 5.0, "saved": {"4": 20.0}}
    pods.folder.write(WASTED_TIME_FILE, json.dumps(record).encode())
    pods.start(4)

    assert (pods.lost, pods.work.seconds) == (35, 20)
    assert [each.device_seconds for each in pods.work.repeats] == [30]


def test_at_most_ten_seconds_are_not_known(pods: Pods) -> None:
    pods.train(39)
    pods.start(0)

    assert pods.lost == 30


def test_a_state_that_the_pod_had_no_time_to_mention_is_not_lost(pods: Pods) -> None:
    pods.train(20)
    pods.start(7)

    assert (pods.lost, pods.work.seconds) == (0, 20)


def test_going_back_to_an_older_state_loses_what_lies_between(pods: Pods) -> None:
    for step in (2, 4):
        pods.train(20)
        pods.work.saved(step)
    pods.start(2)

    assert (pods.lost, pods.work.seconds) == (20, 20)


def test_a_start_that_trains_nothing_changes_nothing(pods: Pods) -> None:
    pods.train(20)
    for _ in range(3):
        pods.start(0)

    assert pods.lost == 20


def test_a_damaged_file_is_no_reason_to_end_a_run(pods: Pods, caplog: pytest.LogCaptureFixture) -> None:
    pods.train(20)
    pods.folder.write(WASTED_TIME_FILE, b"{")
    pods.start(0)

    assert pods.lost == 0
    assert WASTED_TIME_FILE in caplog.text


def test_the_file_is_written_every_ten_seconds_at_most(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = Pods(bench)
    written: list[str] = []
    monkeypatch.setattr(pods.folder, "note", lambda name, _: written.append(name))
    pods.work.begin(0)
    pods.train(100)

    assert written == [WASTED_TIME_FILE] * 11


class PulledPlug(BaseException):
    """The pod ends without notice."""


class PlugPuller(Sheet):
    """Ends the process when step 4 would be reported."""

    def progress(self, progress: Any) -> None:
        if progress.step == 4:
            raise PulledPlug


def test_a_run_that_is_stopped_loses_nothing(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "INTERVAL_SECONDS", 0)
    config = bench.train_config()
    for step in (1, 3, 4):
        with pytest.raises(Preempted):
            bench.train(config, Sheet(stop_at=frozenset({step})))

    result = bench.train_whole(config)

    assert result.restarts == 3
    assert result.lost_device_seconds == 0
    assert result.tokens_per_second is not None
    assert result.tokens_per_second > 0


def test_a_run_that_is_killed_loses_the_time_since_its_last_state(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock advances by 100 seconds at each reading: once per batch and once per save."""
    monkeypatch.setattr(restarts, "INTERVAL_SECONDS", 0)
    readings = iter(range(0, 10**9, 100))
    monkeypatch.setattr(WastedTime.__init__, "__defaults__", (lambda: float(next(readings)),))
    config = bench.train_config(save_every_steps=3)
    with pytest.raises(PulledPlug):
        bench.train(config, PlugPuller())

    result = bench.train_whole(config)

    assert result.restarts == 1
    assert result.lost_device_seconds == 200, "two batches of step 4"
    (repeat,) = result.repeats
    assert (repeat.device_seconds, repeat.out_of_memory) == (200, False)
    assert 0 < repeat.after <= repeat.before
