# SPDX-License-Identifier: Apache-2.0
"""Train on nested subsets of the rows, one after the other, and compare their validation losses."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.results import LearningCurve
from finetune_trainer.contract.vocabulary import CheckpointType, FailureReason
from finetune_trainer.distributed.process_group import PeerLost
from finetune_trainer.model.device import OutOfMemory, release_memory
from finetune_trainer.rows import SPLIT_FILES, load_rows
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.statistics.groups import Groups
from finetune_trainer.train.attempt import Attempt
from finetune_trainer.train.guards.memory import MemoryLadder
from finetune_trainer.train.inputs import TrainingData
from finetune_trainer.train.learningcurve.intervals import learning_curve
from finetune_trainer.train.learningcurve.plan import CurvePlan
from finetune_trainer.train.learningcurve.record import CurveRecord, MeasuredShare
from finetune_trainer.train.learningcurve.subsets import subset_data
from finetune_trainer.train.rowlosses import RowLosses
from finetune_trainer.train.session import TrainingSession
from finetune_trainer.train.states.restarts import (
    MAX_STARTS_WITHOUT_PROGRESS,
    STARTS_FILE,
    WASTED_TIME_FILE,
    RestartBudget,
)
from finetune_trainer.train.states.resume import remove_states

POINT_FAILURES: Final = frozenset({FailureReason.LOSS_NOT_FINITE, FailureReason.LOSS_DIVERGED})
"""Failures of a subset's training that leave out its point. Others are of the store, or of this process."""
MAX_PROBLEM_LENGTH: Final = 300

logger = logging.getLogger(__name__)


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
                _remove_leftovers(config, context, share)
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
            return _failed(
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
            return _failed(measured, str(error))
        except StageFailure as failure:
            if failure.reason not in POINT_FAILURES:
                raise
            return _failed(measured, failure.message)
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


def _failed(measured: MeasuredShare, problem: str) -> MeasuredShare:
    logger.warning("learning curve: no point for %d rows: %s", measured.rows, problem)
    return measured.model_copy(update={"problem": problem[:MAX_PROBLEM_LENGTH]})


def _remove_leftovers(config: TrainConfig, context: StageContext, share: float) -> None:
    """Remove the weights and states of a subset."""
    with context.store.run_folder(config.run, _folder_name(share)) as folder:
        remove_states(folder)
        folder.remove(STARTS_FILE)
        folder.remove(WASTED_TIME_FILE)


def _folder_name(share: float) -> str:
    return f"learning-curve-{share:g}"
