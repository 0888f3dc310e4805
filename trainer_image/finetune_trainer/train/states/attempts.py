"""The attempts at a run: how often it was started, how long it has trained, and what of that was lost.

Kubernetes does not count pods that were disrupted, and starts them again for ever: a run that gets nowhere
comes to an end by `RestartBudget`. `WastedTime` keeps in a small file in the run's folder how far training
had come in seconds, and where the last states were on that way. The next pod begins at a state: what came
after it is lost.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder

MAX_STARTS_WITHOUT_PROGRESS: Final = 3
STARTS_FILE: Final = "starts.json"
WASTED_TIME_FILE: Final = "lostwork.json"
INTERVAL_SECONDS: Final = 10.0
"""Between two writes; a pod that is killed may have lost as much more than is known of it."""
REMEMBERED_STATES: Final = 4
"""Saved states that are remembered; in a bucket the newest may not have arrived."""

logger = logging.getLogger(__name__)


class _RestartRecord(BaseModel):
    total: int = 0
    without_progress: int = 0
    """Starts in a row from the same step, this one among them."""
    step: int = 0
    halvings: int = 0
    """How often batches were halved; with smaller ones a start is not the same once more."""


class RestartBudget:
    """The count in a run's folder; of several processes the leader counts."""

    def __init__(self, folder: RunFolder, group: Group = ALONE) -> None:
        self._folder = folder
        self._group = group
        self._record = _RestartRecord()

    def begin(self, step: int, halvings: int = 0) -> int:
        """Count a start from `step` with batches halved so often; returns how many there were before.

        Raises StageFailure: RESTARTED_WITHOUT_PROGRESS after three starts from this step; STORE_UNAVAILABLE.
        """
        return self._group.broadcast(self._count(step, halvings) if self._group.is_main_process else 0)

    def refund(self) -> None:
        """Not count this start: the run was asked to stop. Raises StageFailure."""
        if self._group.is_main_process and self._record.without_progress:
            self._record.without_progress -= 1
            self._write()

    def _count(self, step: int, halvings: int) -> int:
        record = self._read()
        if (step, halvings) != (record.step, record.halvings):
            record = _RestartRecord(total=record.total, step=step, halvings=halvings)
        if record.without_progress >= MAX_STARTS_WITHOUT_PROGRESS:
            raise StageFailure(
                FailureReason.RESTARTED_WITHOUT_PROGRESS,
                f"training was started {record.without_progress} times from step {step} and never reached the"
                " next saved state; look at how the last pods ended. Out of memory: make a new run with more"
                " memory, or a smaller hyperparameters.perDeviceBatchSize. Hung: check the GPU and the store."
                " Taken away: lower checkpoints.everySteps",
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
                "%s/%s is damaged, and counting begins anew: %s", self._folder.uri, STARTS_FILE, error
            )
            return _RestartRecord()

    def _write(self) -> None:
        self._folder.write(STARTS_FILE, self._record.model_dump_json().encode())


class _TimeRecord(BaseModel):
    seconds: float = 0
    """Training that led to where the run is, without what was lost on the way."""
    lost_seconds: float = 0
    saved: dict[int, float] = {}
    """What `seconds` was when the state after a step was saved."""


class WastedTime:
    """The clock of one run; it stands still between pods. Of several processes the leader keeps it."""

    def __init__(
        self, folder: RunFolder, group: Group = ALONE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._group = group
        self._clock = clock
        self._record = _TimeRecord()
        self._seen_at = self._written_at = clock()

    @property
    def seconds(self) -> float:
        """Training of all pods that was not lost."""
        return self._record.seconds

    @property
    def lost_seconds(self) -> float:
        """Training of all pods that had to be repeated."""
        return self._record.lost_seconds

    @property
    def lost_device_seconds(self) -> float:
        """The same for all processes of the run together."""
        return self.lost_seconds * self._group.size

    def begin(self, step: int) -> None:
        """Training goes on after `step`, or begins: what was done beyond it is lost."""
        record = self._read()
        if step == 0:
            back = 0.0
        elif step > max(record.saved, default=0):
            back = record.seconds  # saved, and the pod ended before this file said so
        else:
            back = record.saved.get(step, 0.0)
        saved = {known: at for known, at in record.saved.items() if known <= step}
        lost = record.lost_seconds + record.seconds - back
        self._record = _TimeRecord(seconds=back, lost_seconds=lost, saved=saved)
        self._seen_at = self._clock()
        self.flush()

    def update(self) -> None:
        """Training goes on; now and then that is written down."""
        self._count()
        if self._seen_at - self._written_at >= INTERVAL_SECONDS:
            self.flush()

    def saved(self, step: int) -> None:
        """The state after `step` is saved: nothing up to it will be lost; written down with the next tick."""
        self._count()
        marks = {**self._record.saved, step: self._record.seconds}
        self._record.saved = dict(sorted(marks.items())[-REMEMBERED_STATES:])

    def _count(self) -> None:
        now = self._clock()
        self._record.seconds += now - self._seen_at
        self._seen_at = now

    def _read(self) -> _TimeRecord:
        try:
            content = self._folder.read(WASTED_TIME_FILE)
            return _TimeRecord() if content is None else _TimeRecord.model_validate_json(content)
        except (StageFailure, ValidationError) as error:
            logger.warning(
                "%s/%s is not used, and lost time is counted anew: %s",
                self._folder.uri,
                WASTED_TIME_FILE,
                error,
            )
            return _TimeRecord()

    def flush(self) -> None:
        """Write down how far training is."""
        self._written_at = self._seen_at
        if self._group.is_main_process:
            self._folder.note(WASTED_TIME_FILE, self._record.model_dump_json().encode())
