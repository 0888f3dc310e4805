# SPDX-License-Identifier: Apache-2.0
"""The learning curve: trainings on nested subsets of the rows, which show whether more rows would help.

The subsets are trained one after the other. Before the first one begins, the main run is complete and its
checkpoints are published. A restarted pod continues from `CurveRecord`: the result of the main run, and the
finished subsets.

Differences are paired: both losses are those of the same validation rows. Intervals do not cover what another
seed would change.
"""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ValidationError

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import LearningCurve, LearningCurvePoint, Outlook, TrainResult
from finetune_trainer.contract.vocabulary import CheckpointType, FailureReason
from finetune_trainer.distributed.process_group import PeerLost
from finetune_trainer.model.device import OutOfMemory, release_memory
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.statistics.bootstrap import Groups, Numbers, bootstrap_mean
from finetune_trainer.statistics.estimate import SHOWN_LEVEL, ConfidenceInterval
from finetune_trainer.store import RunFolder
from finetune_trainer.train.figures import RowLosses
from finetune_trainer.train.inputs import TrainingData
from finetune_trainer.train.learning_curve_plan import CurvePlan, share_of_work, subset_data
from finetune_trainer.train.memory_ladder import MemoryLadder
from finetune_trainer.train.session import Attempt, TrainingSession
from finetune_trainer.train.states.ledger import Fingerprint
from finetune_trainer.train.states.restarts import (
    MAX_STARTS_WITHOUT_PROGRESS,
    STARTS_FILE,
    WASTED_TIME_FILE,
    RestartBudget,
)
from finetune_trainer.train.states.resume_states import remove_states

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


WORTHWHILE_GAIN: Final = 0.02
"""Fall of the loss per doubling of the rows, relative to the loss, below which more rows are not worth it."""
DIGITS: Final = 5
LOSSES: Final = (0.0, math.inf)
GAINS: Final = (-math.inf, math.inf)
"""Ranges of the figures."""


def learning_curve(measured: Sequence[MeasuredShare], groups: Sequence[str] | None = None) -> LearningCurve:
    """The curve of finished trainings.

    Args:
        groups: the group of each validation row; None if the rows are independent.
    """
    points: list[LearningCurvePoint] = []
    before: MeasuredShare | None = None
    ordered = sorted(measured, key=lambda each: each.share)
    outlook: Outlook = "Unknown"
    for each in ordered:
        point, outlook = _point(each, before, groups)
        points.append(point)
        before = each if each.losses is not None else before
    known = [each.losses for each in ordered if each.losses is not None]
    return LearningCurve(
        points=tuple(points),
        outlook=outlook,
        validation_rows=len(known[-1].sums) if known else 0,
        seconds=round(sum(each.seconds for each in ordered if each.share < 1), 1),
    )


def assess_outlook(gain: ConfidenceInterval, loss: float, growth: float) -> Outlook:
    """What the last step of a curve says.

    Args:
        gain: interval of the fall of the loss.
        loss: the loss after the fall.
        growth: factor by which the rows grew.
    """
    worthwhile = WORTHWHILE_GAIN * loss * math.log2(growth)
    if gain.high < worthwhile:
        return "NotLikelyToHelp"
    return "LikelyToHelp" if gain.low > 0 else "Unknown"


def _point(
    each: MeasuredShare, before: MeasuredShare | None, groups: Sequence[str] | None
) -> tuple[LearningCurvePoint, Outlook]:
    point = LearningCurvePoint(share=each.share, rows=each.rows, problem=each.problem)
    losses = each.losses
    if losses is None:
        return point, "Unknown"
    weights = np.array(losses.weights, dtype=float)
    mine = np.array(losses.sums)
    update: dict[str, float] = {"loss": losses.mean}
    interval = _interval(mine, weights, groups, LOSSES)
    if interval is not None:
        update |= {"loss_low": interval.low, "loss_high": interval.high}
    outlook: Outlook = "Unknown"
    if before is not None and before.losses is not None:
        update["gain"] = before.losses.mean - losses.mean
        gain = _interval(np.array(before.losses.sums) - mine, weights, groups, GAINS)
        if gain is not None:
            update |= {"gain_low": gain.low, "gain_high": gain.high}
            outlook = assess_outlook(gain, losses.mean, each.rows / before.rows)
    return point.model_copy(update={name: _rounded(value) for name, value in update.items()}), outlook


def _interval(
    sums: Numbers, weights: Numbers, groups: Sequence[str] | None, limits: tuple[float, float]
) -> ConfidenceInterval | None:
    """The interval of a mean, from the sum and the weight of each row; None if the rows give none."""
    mean = bootstrap_mean(sums, groups, limits, weights)
    return mean.interval(SHOWN_LEVEL) if mean.has_interval else None


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


POINT_FAILURES: Final = frozenset({FailureReason.LOSS_NOT_FINITE, FailureReason.LOSS_DIVERGED})
"""Failures of a subset's training that leave out its point. Others are of the store, or of this process."""
MAX_PROBLEM_LENGTH: Final = 300


class DiscardedWeights:
    """In place of the weights of a model that becomes no Checkpoint: writes nothing."""

    type: CheckpointType = "Adapter"
    dtype = None

    def write(self, folder: Path) -> None:
        pass

    def contribute(self) -> None:
        pass


def measure_curve(config: TrainConfig, context: StageContext, record: CurveRecord | None) -> LearningCurve:
    """Train on each subset that is not measured yet; return the curve, which is empty if not rank 0.

    A subset whose training fails has a point without a loss. Collective.

    Args:
        config: that of the stage.
        context: its context.
        record: that of the main run; None if not rank 0.

    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_DATA,
    STORE_UNAVAILABLE), Preempted, PeerLost.
    """
    group = context.group
    with context.store.run_folder(config.run, config.stage) as folder:
        used = MemoryLadder.read(folder).broadcast(group).apply(config.hyperparameters)
        data = TrainingData.load(config, used, context)
        plan = CurvePlan.of(config, used, len(data.rows))
        for index, (share, subset) in enumerate(zip(config.learning_curve, plan.subsets, strict=True)):
            inputs = subset_data(data, subset.hyperparameters, share)
            rows = len(inputs.rows)
            if group.broadcast(int(record is not None and record.begins(share, rows, config, folder))):
                logger.info("learning curve: training on %d of %d rows", rows, len(data.rows))
                measured = _measure(subset, plan.subset_context(context, index), inputs, share)
                if record is not None:
                    record.add(measured, folder)
                release_memory()
                context.stop.release()
            if record is not None:
                _remove_subset_folder(config, context, share)
        if record is None:
            return LearningCurve()
        groups = None if config.group_by is None else _groups(config, config.group_by, context, data)
        return learning_curve(record.measured, groups)


def _groups(config: TrainConfig, column: str, context: StageContext, data: TrainingData) -> Sequence[str]:
    """The group of each validation row; one for all if the dataset does not keep the column."""
    folder = context.store.artifact(ArtifactRef(kind="datasets", digest=config.dataset))
    rows = load_rows(folder / SPLIT_FILES["validation"])
    groups = Groups.of(column, (dict(row.columns) for row in rows))
    if groups.of_rows is None:
        logger.warning(
            "the learning curve has no intervals, because the dataset does not keep the column %s: add it to"
            " spec.keepColumns of the Dataset",
            column,
        )
        return [column] * len(data.validation)
    return [groups.of_rows[number] for number in data.validation_numbers]


def _measure(config: TrainConfig, context: StageContext, data: TrainingData, share: float) -> MeasuredShare:
    """Train on a subset, from its last saved state if it has one. Without losses if not rank 0."""
    group = context.group
    measured = MeasuredShare(share=share, rows=len(data.rows))
    with context.store.run_folder(config.run, _folder_name(share)) as folder:
        attempt = Attempt.open(config, folder, group)
        budget = RestartBudget(folder, group)
        if budget.is_exhausted(attempt.step):
            attempt.states.close()
            return _record_problem(
                measured,
                f"training was started {MAX_STARTS_WITHOUT_PROGRESS} times from step {attempt.step} and ended"
                " each time before the next saved state",
            )
        try:
            budget.begin(attempt.step)
            with group.guarded(), TrainingSession.open(config, context, attempt, data) as session:
                outcome = session.run(DiscardedWeights())
        except OutOfMemory as error:
            if group.size > 1:
                raise PeerLost(f"{error}, while training on a part of the rows") from error
            return _record_problem(measured, str(error))
        except StageFailure as failure:
            if failure.reason not in POINT_FAILURES:
                raise
            return _record_problem(measured, failure.message)
        except Preempted:
            budget.refund()
            raise
        except PeerLost:
            attempt.states.close(peer_lost=True)
            raise
        finally:
            attempt.states.close()
        best = outcome.ledger.best
        if best is None or not group.is_main_process:
            return measured
        losses = RowLosses.read(attempt.states.best_folder(best.step))
        return measured.model_copy(update={"losses": losses, "seconds": outcome.wasted_time.total_seconds})


def _record_problem(measured: MeasuredShare, problem: str) -> MeasuredShare:
    logger.warning("learning curve: no point for %d rows: %s", measured.rows, problem)
    return measured.model_copy(update={"problem": problem[:MAX_PROBLEM_LENGTH]})


def _remove_subset_folder(config: TrainConfig, context: StageContext, share: float) -> None:
    """Remove the weights and states of a subset."""
    with context.store.run_folder(config.run, _folder_name(share)) as folder:
        remove_states(folder)
        folder.remove(STARTS_FILE)
        folder.remove(WASTED_TIME_FILE)


def _folder_name(share: float) -> str:
    return f"learning-curve-{share:g}"
