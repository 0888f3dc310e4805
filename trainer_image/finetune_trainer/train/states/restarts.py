# SPDX-License-Identifier: Apache-2.0
"""Restarts of a run: their limit, the training time, and the part of it that was wasted.

Kubernetes does not count disrupted pods as failed and restarts them without limit, so `RestartBudget` ends a
run that makes no progress. `WastedTime` keeps a small file in the run's folder with the training time so far,
and with the times of the last saved states. The next pod resumes from a state: the time after it is wasted.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.results import MAX_REPEATS, RepeatedTraining
from finetune_trainer.contract.vocabulary import FailureReason
from finetune_trainer.distributed.process_group import ALONE, Group
from finetune_trainer.runtime.termination import StageFailure
from finetune_trainer.store import RunFolder

MAX_STARTS_WITHOUT_PROGRESS: Final = 3
STARTS_FILE: Final = "starts.json"
WASTED_TIME_FILE: Final = "lostwork.json"
INTERVAL_SECONDS: Final = 10.0
"""Interval between two writes; the time lost by a killed pod is underestimated by up to this."""
REMEMBERED_STATES: Final = 4
"""Number of recorded states; in a bucket the newest may not be uploaded yet."""

logger = logging.getLogger(__name__)


class _RestartRecord(BaseModel):
    total: int = 0
    without_progress: int = 0
    """Consecutive starts from the same step, including this one."""
    step: int = 0
    halvings: int = 0
    """How often the need of memory was reduced; a start that needs less is not a repetition."""

    @property
    def is_exhausted(self) -> bool:
        """Whether no further start from this step is allowed."""
        return self.without_progress >= MAX_STARTS_WITHOUT_PROGRESS


class RestartBudget:
    """Counts the starts of a run in its folder; only rank 0 writes."""

    def __init__(self, folder: RunFolder, group: Group = ALONE) -> None:
        self._folder = folder
        self._group = group
        self._record = _RestartRecord()

    def begin(self, step: int, halvings: int = 0) -> int:
        """Count a start from `step` after `halvings` reductions of memory; return the earlier starts.

        Raises StageFailure: RESTARTED_WITHOUT_PROGRESS after three starts from this step; STORE_UNAVAILABLE.
        """
        return self._group.broadcast(self._count(step, halvings) if self._group.is_main_process else 0)

    def is_exhausted(self, step: int, halvings: int = 0) -> bool:
        """Whether `begin` would raise RESTARTED_WITHOUT_PROGRESS. Collective."""
        exhausted = self._group.is_main_process and self._current(step, halvings).is_exhausted
        return bool(self._group.broadcast(int(exhausted)))

    def refund(self) -> None:
        """Do not count this start, because a signal stopped the run. Raises StageFailure."""
        if self._group.is_main_process and self._record.without_progress:
            self._record.without_progress -= 1
            self._write()

    def _current(self, step: int, halvings: int) -> _RestartRecord:
        """The record, without the starts from another step."""
        record = self._read()
        if (step, halvings) != (record.step, record.halvings):
            return _RestartRecord(total=record.total, step=step, halvings=halvings)
        return record

    def _count(self, step: int, halvings: int) -> int:
        record = self._current(step, halvings)
        if record.is_exhausted:
            raise StageFailure(
                FailureReason.RESTARTED_WITHOUT_PROGRESS,
                f"training was started {record.without_progress} times from step {step} and never reached the"
                " next saved state. Check how the last pods ended. Out of memory: create a new run with more"
                " memory or a smaller hyperparameters.maxSequenceLength. Hung: check the GPU and the store."
                " Evicted or preempted: lower checkpoints.stateEverySteps in a new run",
            )
        record.total += 1
        record.without_progress += 1
        self._record = record
        self._write()
        return record.total - 1

    def _read(self) -> _RestartRecord:
        content = self._folder.read(STARTS_FILE)
        if content is None:
            return _RestartRecord()
        try:
            return _RestartRecord.model_validate_json(content)
        except ValidationError as error:
            logger.warning(
                "%s/%s is damaged; the count of starts is reset: %s", self._folder.uri, STARTS_FILE, error
            )
            return _RestartRecord()

    def _write(self) -> None:
        self._folder.write(STARTS_FILE, self._record.model_dump_json().encode())


class _TimeRecord(BaseModel):
    seconds: float = 0
    """Training time up to the current position, without wasted time."""
    lost_seconds: float = 0
    """Wasted training time."""
    saved: dict[int, float] = {}
    """`seconds` at the time of each save, by step."""
    written_at: float = 0
    """Unix time of the last write of this record."""
    rungs: int = 0
    """How often the need of memory had been reduced."""
    repeats: tuple[RepeatedTraining, ...] = ()
    """The last losses, with seconds of one process."""


class WastedTime:
    """The clock of one run, which stops between pods; only rank 0 writes it.

    Args:
        folder: folder of the run.
        group: processes of the run.
        clock: returns the seconds since any moment.
        rungs: how often the need of memory was reduced before this attempt.
        unix_time: returns the Unix time.
    """

    def __init__(
        self,
        folder: RunFolder,
        group: Group = ALONE,
        clock: Callable[[], float] = time.monotonic,
        *,
        rungs: int = 0,
        unix_time: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._group = group
        self._clock = clock
        self._rungs = rungs
        self._unix_time = unix_time
        self._record = _TimeRecord()
        self._updated_at = self._written_at = clock()

    @property
    def seconds(self) -> float:
        """Training time of all pods that was not wasted."""
        return self._record.seconds

    @property
    def lost_seconds(self) -> float:
        """Training time of all pods that had to be repeated."""
        return self._record.lost_seconds

    @property
    def total_seconds(self) -> float:
        """Training time of all pods."""
        return self.seconds + self.lost_seconds

    @property
    def lost_device_seconds(self) -> float:
        """Wasted time, summed over all processes of the run."""
        return self.lost_seconds * self._group.size

    @property
    def repeats(self) -> tuple[RepeatedTraining, ...]:
        """The last losses, summed over all processes of the run."""
        return tuple(
            each.model_copy(update={"device_seconds": round(each.device_seconds * self._group.size, 3)})
            for each in self._record.repeats
        )

    def begin(self, step: int) -> None:
        """Start or resume after `step`: training beyond it is wasted."""
        record = self._read()
        if step == 0:
            resumed_at = 0.0
        elif step > max(record.saved, default=0):
            resumed_at = record.seconds  # the pod ended after the save, before it wrote this file
        else:
            resumed_at = record.saved.get(step, 0.0)
        saved = {saved_step: at for saved_step, at in record.saved.items() if saved_step <= step}
        lost, repeats = record.seconds - resumed_at, record.repeats
        if lost > 0:
            repeat = RepeatedTraining(
                after=record.written_at,
                before=self._unix_time(),
                device_seconds=lost,
                out_of_memory=self._rungs > record.rungs,
            )
            repeats = (*repeats, repeat)[-MAX_REPEATS:]
        self._record = _TimeRecord(
            seconds=resumed_at,
            lost_seconds=record.lost_seconds + lost,
            saved=saved,
            rungs=self._rungs,
            repeats=repeats,
        )
        self._updated_at = self._clock()
        self.flush()

    def update(self) -> None:
        """Count the time since the last call, and write the file at intervals."""
        self._count()
        if self._updated_at - self._written_at >= INTERVAL_SECONDS:
            self.flush()

    def saved(self, step: int) -> None:
        """Record that the state after `step` is saved; the next update writes the file."""
        self._count()
        marks = {**self._record.saved, step: self._record.seconds}
        self._record.saved = dict(sorted(marks.items())[-REMEMBERED_STATES:])

    def _count(self) -> None:
        now = self._clock()
        self._record.seconds += now - self._updated_at
        self._updated_at = now

    def _read(self) -> _TimeRecord:
        try:
            content = self._folder.read(WASTED_TIME_FILE)
            return _TimeRecord() if content is None else _TimeRecord.model_validate_json(content)
        except (StageFailure, ValidationError) as error:
            logger.warning(
                "%s/%s is ignored; the count of lost time is reset: %s",
                self._folder.uri,
                WASTED_TIME_FILE,
                error,
            )
            return _TimeRecord()

    def flush(self) -> None:
        """Write the file."""
        self._written_at = self._updated_at
        self._record.written_at = self._unix_time()
        if self._group.is_main_process:
            self._folder.note(WASTED_TIME_FILE, self._record.model_dump_json().encode())
