# SPDX-License-Identifier: Apache-2.0
"""What a restarted pod continues a learning curve from: the result of the main run, and finished subsets."""

import logging
from typing import Final

from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.store import RunFolder
from finetune_trainer.train.learningcurve.subsets import share_of_work
from finetune_trainer.train.rowlosses import RowLosses
from finetune_trainer.train.states.ledger import Fingerprint

FILE: Final = "learning-curve.json"
TIME_MARGIN: Final = 1.3
"""Factor on the expected seconds of a subset, for the start of its training and for pods that restart."""

logger = logging.getLogger(__name__)


class MeasuredShare(BaseModel):
    """A finished training."""

    share: float
    rows: int
    """Number of training rows."""
    seconds: float = 0
    """Seconds of training in all pods, with repeated work."""
    losses: RowLosses | None = None
    """Losses of the validation rows with the best weights; None if the training failed."""
    problem: str | None = None


class CurveRecord(BaseModel):
    """The file of a learning curve in the folder of the train stage."""

    fingerprint: Fingerprint
    """That of the main run."""
    trained: TrainResult
    """Result of the main run, whose checkpoints are published."""
    measured: list[MeasuredShare] = []
    """The main run, then the subsets in the order in which they were trained."""

    @classmethod
    def of(cls, config: TrainConfig, trained: TrainResult, main: MeasuredShare) -> "CurveRecord":
        """The record of the published main run."""
        return cls(fingerprint=Fingerprint.of(config), trained=trained, measured=[main])

    @classmethod
    def read(cls, folder: RunFolder, config: TrainConfig) -> "CurveRecord | None":
        """That of the run; None before its main run is complete. Raises StageFailure (STORE_UNAVAILABLE)."""
        content = folder.read(FILE)
        if content is None:
            return None
        try:
            record = cls.model_validate_json(content)
        except ValidationError as error:
            logger.warning("%s/%s is damaged and ignored: %s", folder.uri, FILE, error)
            return None
        return None if Fingerprint.of(config).differences(record.fingerprint) else record

    def write(self, folder: RunFolder) -> None:
        """Store it. Raises StageFailure (STORE_UNAVAILABLE)."""
        folder.write(FILE, self.model_dump_json().encode())

    def has(self, share: float) -> bool:
        """Whether the training on this share is finished."""
        return any(each.share == share for each in self.measured)

    def add(self, measured: MeasuredShare, folder: RunFolder) -> None:
        """Record a finished training."""
        self.measured.append(measured)
        self.write(folder)

    def begins(self, share: float, rows: int, config: TrainConfig, folder: RunFolder) -> bool:
        """Whether to begin or resume the training on this share.

        False if it is finished. Also False, with a point without a loss, if the run would exceed its time.
        `config` is that of the run. Raises StageFailure (STORE_UNAVAILABLE).
        """
        if self.has(share):
            return False
        if config.max_run_seconds is None:
            return True
        problem = self._lack_of_time(rows, config.max_run_seconds, config.hyperparameters)
        if problem is not None:
            logger.warning("learning curve: no point for %d rows: %s", rows, problem)
            self.add(MeasuredShare(share=share, rows=rows, problem=problem), folder)
        return problem is None

    def _lack_of_time(self, rows: int, max_run_seconds: int, hyperparameters: Hyperparameters) -> str | None:
        main = next(each for each in self.measured if each.share == 1)
        used = sum(each.seconds for each in self.measured)
        expected = TIME_MARGIN * main.seconds * share_of_work(rows, main.rows, hyperparameters)
        if used + expected <= max_run_seconds:
            return None
        return (
            f"training would take about {expected:.0f} s more, but {used:.0f} s of maxRunSeconds"
            f" ({max_run_seconds}) are used"
        )
