"""How often this run was started, so that one that gets nowhere comes to an end.

Kubernetes does not count pods that were disrupted, and starts them again for ever.
"""

import logging
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.outcomes import FailureReason
from finetune_trainer.distributed.group import ALONE, Group
from finetune_trainer.runtime.failure import StageFailure
from finetune_trainer.store import RunFolder

MOST_WITHOUT_PROGRESS: Final = 3
FILE: Final = "starts.json"

logger = logging.getLogger(__name__)


class _Record(BaseModel):
    total: int = 0
    without_progress: int = 0
    """Starts in a row from the same step, this one among them."""
    step: int = 0
    halvings: int = 0
    """How often batches were halved; with smaller ones a start is not the same once more."""


class Starts:
    """The count in a run's folder; of several processes the leader counts."""

    def __init__(self, folder: RunFolder, group: Group = ALONE) -> None:
        self._folder = folder
        self._group = group
        self._record = _Record()

    def begin(self, step: int, halvings: int = 0) -> int:
        """Count a start from `step` with batches halved so often; returns how many there were before.

        Raises StageFailure: RESTARTED_WITHOUT_PROGRESS after three starts from this step; STORE_UNAVAILABLE.
        """
        return self._group.told(self._count(step, halvings) if self._group.leads else 0)

    def forgive(self) -> None:
        """Not count this start: the run was asked to stop. Raises StageFailure."""
        if self._group.leads and self._record.without_progress:
            self._record.without_progress -= 1
            self._write()

    def _count(self, step: int, halvings: int) -> int:
        record = self._read()
        if (step, halvings) != (record.step, record.halvings):
            record = _Record(total=record.total, step=step, halvings=halvings)
        if record.without_progress >= MOST_WITHOUT_PROGRESS:
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

    def _read(self) -> _Record:
        content = self._folder.read(FILE)
        if content is None:
            return _Record()
        try:
            return _Record.model_validate_json(content)
        except ValidationError as error:
            logger.warning("%s/%s is damaged, and counting begins anew: %s", self._folder.uri, FILE, error)
            return _Record()

    def _write(self) -> None:
        self._folder.write(FILE, self._record.model_dump_json().encode())
