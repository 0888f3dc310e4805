# SPDX-License-Identifier: Apache-2.0
"""How many status writes the progress of runs causes."""

import itertools

from finetune_operator.plan import Key
from finetune_operator.report.authorization import Caller
from finetune_operator.report.progress_cache import ProgressCache
from finetune_trainer.contract.references import Owner
from finetune_trainer.contract.results import Progress, Report
from finetune_trainer.contract.vocabulary import Stage


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Runs:
    """A board, its clock, and which run it queued when."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.looks: list[tuple[str, float]] = []
        self.board = ProgressCache(self._announce, self.clock)
        self._sequence = 0

    def _announce(self, key: Key, delay: float) -> None:
        self.looks.append((key.name, self.clock.now + delay))

    def report(
        self, step: int, *, run: str = "job", stage: Stage = "train", sequence: int | None = None
    ) -> None:
        self._sequence += 1
        owner = Owner(kind="FineTuneJob", namespace="ns", name=run, uid=f"uid-{run}")
        report = Report(
            owner=owner,
            stage=stage,
            sequence=self._sequence if sequence is None else sequence,
            progress=Progress(step=step, total_steps=1000),
        )
        self.board.accept(Caller("FineTuneJob", "ns", run, f"uid-{run}", "pod"), report)

    def step(self, run: str = "job") -> int | None:
        newest = self.board.progress(f"uid-{run}")
        return newest.progress.step if newest else None


def test_the_first_report_is_told_at_once() -> None:
    runs = Runs()
    runs.report(0)
    assert runs.looks == [("job", 1000.0)]


def test_less_than_one_percent_is_kept_but_not_told() -> None:
    runs = Runs()
    runs.report(0)
    runs.clock.now += 60
    runs.report(9)
    assert len(runs.looks) == 1
    assert runs.step() == 9


def test_a_run_is_looked_at_every_ten_seconds_at_most_and_then_sees_the_newest() -> None:
    runs = Runs()
    runs.report(0)
    for second in range(1, 41):
        runs.clock.now = 1000.0 + second
        runs.report(second * 20)
    assert [at for _, at in runs.looks] == [1000.0, 1010.0, 1020.0, 1030.0, 1040.0, 1050.0]
    assert runs.step() == 800


def test_another_stage_is_told_at_once() -> None:
    runs = Runs()
    runs.report(0, stage="preflight")
    runs.clock.now += 1
    runs.report(0, stage="train")
    assert runs.looks[-1] == ("job", 1001.0)


def test_an_older_report_that_comes_late_is_no_news() -> None:
    runs = Runs()
    runs.report(500, sequence=10)
    runs.clock.now += 60
    runs.report(100, sequence=9)
    assert runs.step() == 500
    assert len(runs.looks) == 1


def test_all_runs_together_cause_twenty_looks_a_second_at_most() -> None:
    runs = Runs()
    for number in range(100):
        runs.report(0, run=f"job-{number}")
    first = [at for _, at in runs.looks]
    runs.clock.now += 60
    for number in range(100):
        runs.report(500, run=f"job-{number}")
    steps = [at for _, at in runs.looks[100:]]
    for times in (first, steps):
        assert len(times) == 100
        assert max(times) - min(times) > 9.8
        assert all(later - earlier >= 0.0999 for earlier, later in itertools.pairwise(times))


def test_the_first_report_of_a_run_does_not_wait_for_the_next_ones_of_others() -> None:
    """Those are due up to ten seconds later."""
    runs = Runs()
    runs.report(0, run="old")
    runs.clock.now += 1
    runs.report(500, run="old")
    runs.report(0, run="new")
    assert runs.looks == [("old", 1000.0), ("old", 1010.0), ("new", 1001.0)]


def test_a_run_that_is_gone_is_forgotten() -> None:
    runs = Runs()
    runs.report(1)
    runs.board.forget("uid-job")
    assert runs.step() is None


def test_a_run_gets_further_with_another_step_and_not_with_the_same_one_again() -> None:
    runs = Runs()
    assert runs.board.since_progress("uid-job") is None
    runs.report(7)
    runs.clock.now += 60
    runs.report(7)
    assert runs.board.since_progress("uid-job") == 60
    runs.report(8)
    assert runs.board.since_progress("uid-job") == 0
    runs.clock.now += 5
    runs.report(8, stage="evaluate")
    assert runs.board.since_progress("uid-job") == 0
