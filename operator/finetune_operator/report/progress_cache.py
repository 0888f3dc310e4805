# SPDX-License-Identifier: Apache-2.0
"""The newest report of each run, and limits on the status writes that reports cause."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from finetune_operator.plan import Key
from finetune_operator.reconcile.inputs.snapshot import RunProgress
from finetune_operator.report.authorization import Caller
from finetune_trainer.contract.results import Progress, Report

RUN_INTERVAL_SECONDS: Final = 10.0
"""Seconds between two status writes for the progress of a run."""
MIN_PERCENT: Final = 1
STAGES_PER_SECOND: Final = 10.0
STEPS_PER_SECOND: Final = 10.0
"""Limits of status writes for the progress of all runs: for the first report of a stage, and for other
reports. The limits are separate, because other reports are scheduled up to ten seconds ahead."""

Announce = Callable[[Key, float], None]
"""Queues the object with a delay in seconds."""


@dataclass(slots=True)
class _Run:
    newest: RunProgress
    sequence: int
    moved_at: float
    """Time of the first report of the newest step."""
    announced: RunProgress | None = None
    announced_at: float = float("-inf")


class ProgressCache:
    """Newest reports, one entry per run until the run's object is deleted."""

    def __init__(self, announce: Announce, clock: Callable[[], float] = time.monotonic) -> None:
        self._announce = announce
        self._clock = clock
        self._runs: dict[str, _Run] = {}
        self._next_stage = self._next_step = float("-inf")

    def accept(self, caller: Caller, report: Report) -> None:
        """Accept a report of an authorized pod. One with an older sequence number is ignored."""
        newest, now = RunProgress(report.stage, report.progress, caller.pod_uid), self._clock()
        run = self._runs.get(caller.uid)
        if run is None:
            run = self._runs[caller.uid] = _Run(newest, report.sequence, moved_at=now)
        elif report.sequence <= run.sequence:
            return
        if _has_moved(run.newest, newest):
            run.moved_at = now
        run.newest, run.sequence = newest, report.sequence
        if not _is_news(run.announced, newest):
            return
        if run.announced_at > now:
            # A pass is already scheduled; it will read this report.
            return
        if run.announced is None or run.announced.stage != newest.stage:
            due = max(now, self._next_stage)
            self._next_stage = due + 1 / STAGES_PER_SECOND
        else:
            due = max(now, run.announced_at + RUN_INTERVAL_SECONDS, self._next_step)
            self._next_step = due + 1 / STEPS_PER_SECOND
        run.announced, run.announced_at = newest, due
        self._announce(Key(caller.kind, caller.namespace, caller.name), due - now)

    def progress(self, uid: str) -> RunProgress | None:
        """The newest report of the run with this uid."""
        run = self._runs.get(uid)
        return None if run is None else run.newest

    def since_progress(self, uid: str) -> float | None:
        """Seconds since the first report of the newest step of the run with this uid."""
        run = self._runs.get(uid)
        return None if run is None else self._clock() - run.moved_at

    def forget(self, uid: str) -> None:
        self._runs.pop(uid, None)


def percent(progress: Progress) -> int:
    """Whole percent of the stage's steps; 0 if their number is unknown."""
    return 100 * progress.step // progress.total_steps if progress.total_steps else 0


def _has_moved(old: RunProgress, new: RunProgress) -> bool:
    """Whether stage or step differ. A pod that resumes from an earlier step also makes progress."""
    return (old.stage, old.progress.step) != (new.stage, new.progress.step)


def _is_news(announced: RunProgress | None, newest: RunProgress) -> bool:
    if announced is None or announced.stage != newest.stage:
        return True
    return abs(percent(newest.progress) - percent(announced.progress)) >= MIN_PERCENT
