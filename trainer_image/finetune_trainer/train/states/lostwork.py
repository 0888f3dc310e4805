"""How long a run has trained, and how much of that was repeated because pods ended before it was saved.

A small file in the run's folder says how far training had come in seconds, and where the last states were on
that way. The next pod begins at a state: what came after it is lost.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder

FILE: Final = "lostwork.json"
INTERVAL_SECONDS: Final = 10.0
"""Between two writes; a pod that is killed may have lost as much more than is known of it."""
STATES: Final = 4
"""Saved states that are remembered; in a bucket the newest may not have arrived."""

logger = logging.getLogger(__name__)


class _Record(BaseModel):
    seconds: float = 0
    """Training that led to where the run is, without what was lost on the way."""
    lost_seconds: float = 0
    saved: dict[int, float] = {}
    """What `seconds` was when the state after a step was saved."""


class LostWork:
    """The clock of one run; it stands still between pods. Of several processes the leader keeps it."""

    def __init__(
        self, folder: RunFolder, group: Group = ALONE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._group = group
        self._clock = clock
        self._record = _Record()
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
        self._record = _Record(seconds=back, lost_seconds=lost, saved=saved)
        self._seen_at = self._clock()
        self.note()

    def tick(self) -> None:
        """Training goes on; now and then that is written down."""
        self._count()
        if self._seen_at - self._written_at >= INTERVAL_SECONDS:
            self.note()

    def saved(self, step: int) -> None:
        """The state after `step` is saved: nothing up to it will be lost; written down with the next tick."""
        self._count()
        marks = {**self._record.saved, step: self._record.seconds}
        self._record.saved = dict(sorted(marks.items())[-STATES:])

    def _count(self) -> None:
        now = self._clock()
        self._record.seconds += now - self._seen_at
        self._seen_at = now

    def _read(self) -> _Record:
        try:
            content = self._folder.read(FILE)
            return _Record() if content is None else _Record.model_validate_json(content)
        except (StageFailure, ValidationError) as error:
            logger.warning(
                "%s/%s is not used, and lost time is counted anew: %s", self._folder.uri, FILE, error
            )
            return _Record()

    def note(self) -> None:
        """Write down how far training is."""
        self._written_at = self._seen_at
        if self._group.leads:
            self._folder.note(FILE, self._record.model_dump_json().encode())
