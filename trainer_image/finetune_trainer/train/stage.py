# SPDX-License-Identifier: Apache-2.0
"""The train stage: load, open, run, result, publish; again with less memory if it runs out."""

import logging
from functools import partial
from pathlib import Path
from typing import Final

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import StepDivision
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.distributed.process_group import PeerLost
from finetune_trainer.model.device import OutOfMemory, peak_memory, release_memory
from finetune_trainer.runtime.termination import Preempted
from finetune_trainer.stage.context import StageContext
from finetune_trainer.train.figures import RowLosses
from finetune_trainer.train.inputs import TrainingData
from finetune_trainer.train.learning_curve import CurveRecord, MeasuredShare, measure_curve
from finetune_trainer.train.learning_curve_plan import CurvePlan, require_validation_rows
from finetune_trainer.train.memory_ladder import describe_batches, out_of_memory_failure
from finetune_trainer.train.publication import (
    add_learning_curve,
    publish_checkpoints,
    training_report,
    write_training_report,
)
from finetune_trainer.train.session import Attempt, TrainingOutcome, TrainingSession
from finetune_trainer.train.states.restarts import RestartBudget

ADAPTED: Final = (
    *StepDivision.model_fields,
    "gradient_checkpointing",
)
"""Hyperparameters that a result reports if memory ran out and others were used than the config's."""

logger = logging.getLogger(__name__)


def run(config: TrainConfig, context: StageContext) -> TrainResult:
    """Train, or resume training, and publish the checkpoints.

    On a CPU the weights of an interrupted run are bit-identical to those of an uninterrupted run.
    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_CONFIG,
    INVALID_DATA, FINGERPRINT_MISMATCH, RESTARTED_WITHOUT_PROGRESS, LOSS_NOT_FINITE, LOSS_DIVERGED,
    OUT_OF_MEMORY, STORE_UNAVAILABLE), Preempted, PeerLost.
    If the run has several processes, rank 0 publishes; the others return a result without checkpoints.
    """
    if not config.learning_curve:
        return _main_run(config, context)
    record = _read_record(config, context)
    if not context.group.broadcast(int(record is not None)):
        _main_run(config, context)
        record = _read_record(config, context)
    curve = measure_curve(config, context, record)
    _release(context)
    if record is None:
        return TrainResult(steps=config.hyperparameters.total_steps, checkpoints=())
    with context.store.run_folder(config.run, config.stage) as folder:
        add_learning_curve(folder, curve)
    return record.trained.model_copy(update={"learning_curve": curve})


def _main_run(config: TrainConfig, context: StageContext) -> TrainResult:
    """Train on all rows, and publish the checkpoints."""
    result = None
    while result is None:
        result = _attempt(config, context)
        release_memory()
        if result is None:
            context.stop.release()
    return result


def _read_record(config: TrainConfig, context: StageContext) -> CurveRecord | None:
    """The record of the published main run; None if not rank 0."""
    if not context.group.is_main_process:
        return None
    with context.store.run_folder(config.run, config.stage) as folder:
        return CurveRecord.read(folder, config)


def _attempt(config: TrainConfig, context: StageContext) -> TrainResult | None:
    """Train once; None if memory ran out and the next attempt needs less."""
    group = context.group
    with context.store.run_folder(config.run, config.stage) as folder:
        attempt = Attempt.open(config, folder, group)
        budget = RestartBudget(folder, group)
        try:
            restarts = budget.begin(attempt.step, attempt.ladder.rungs)
            if attempt.state:
                total = config.hyperparameters.total_steps
                logger.info("resuming after step %d of %d", attempt.step, total)
            with group.guarded():
                return _train(config, context, attempt, restarts)
        except Preempted:
            budget.refund()
            raise
        except PeerLost:
            attempt.states.close(peer_lost=True)
            raise
        except OutOfMemory as error:
            _need_less_memory(config, context, attempt, error)
            budget.refund()
            return None
        finally:
            attempt.states.close()


def _train(config: TrainConfig, context: StageContext, attempt: Attempt, restarts: int) -> TrainResult:
    data = TrainingData.load(config, attempt.hyperparameters, context)
    if config.learning_curve:
        require_validation_rows(len(data.validation))
        plan = CurvePlan.of(config, attempt.hyperparameters, len(data.rows))
        context = plan.main_context(context)
    with TrainingSession.open(config, context, attempt, data) as session:
        outcome = session.run()
    result = _result(config, attempt, outcome, restarts)
    release = context.stop.release if config.learning_curve else partial(_release, context)
    if not context.group.is_main_process:
        outcome.weights.contribute()
        release()
        return result
    with context.store.staging() as final:
        outcome.weights.write(final)
        release()
        result = _publish(config, context, attempt, outcome, result, final=final)
    best = outcome.ledger.best
    if config.learning_curve and best is not None:
        main = MeasuredShare(
            share=1,
            rows=len(data.rows),
            seconds=outcome.wasted_time.total_seconds,
            losses=RowLosses.read(attempt.states.best_folder(best.step)),
        )
        CurveRecord.of(config, result, main).write(attempt.folder)
    return result


def _release(context: StageContext) -> None:
    """End what needs all processes, or the state of this one. Raises Preempted after a signal."""
    context.group.end_collectives()
    context.stop.release()


def _result(config: TrainConfig, attempt: Attempt, outcome: TrainingOutcome, restarts: int) -> TrainResult:
    """The figures of a finished run, without checkpoints."""
    ledger, wasted_time = outcome.ledger, outcome.wasted_time
    planned, used = config.hyperparameters, attempt.hyperparameters
    return TrainResult(
        steps=outcome.steps,
        train_loss=ledger.final_train_loss,
        validation_loss=ledger.validation_loss,
        tokens=ledger.tokens,
        tokens_per_second=round(ledger.tokens / wasted_time.seconds, 1) if wasted_time.seconds else None,
        device_memory_bytes=peak_memory(outcome.device),
        restarts=restarts,
        lost_device_seconds=round(wasted_time.lost_device_seconds, 1),
        repeats=wasted_time.repeats,
        loss_curve=ledger.curve.shown(),
        stopped_early=outcome.stopped_early,
        overfit=ledger.overfit,
        **{name: getattr(used, name) for name in ADAPTED if getattr(used, name) != getattr(planned, name)},
        checkpoints=(),
    )


def _publish(
    config: TrainConfig,
    context: StageContext,
    attempt: Attempt,
    outcome: TrainingOutcome,
    result: TrainResult,
    *,
    final: Path,
) -> TrainResult:
    """Publish checkpoints, with the last weights from the folder `final`, and the report."""
    checkpoints = publish_checkpoints(
        context.store,
        attempt.states,
        outcome.ledger,
        final,
        outcome.retention,
        weights_type=outcome.weights.type,
        bundle=outcome.bundle,
        step=outcome.steps,
        epoch=outcome.epoch,
    )
    result = result.model_copy(update={"checkpoints": checkpoints})
    report = training_report(config, result, outcome.ledger.curve)
    uri = write_training_report(attempt.folder, report)
    return result.model_copy(update={"report_uri": uri})


def _need_less_memory(
    config: TrainConfig, context: StageContext, attempt: Attempt, error: OutOfMemory
) -> None:
    """Make the next attempt need less memory.

    Raises StageFailure (OUT_OF_MEMORY) if it cannot; PeerLost if other processes have to restart
    together with this one.
    """
    used, method = attempt.hyperparameters, config.method
    ladder = None
    if error.by_batch:
        ladder = attempt.ladder.next(used, error.max_row_tokens)
    if ladder is None:
        raise out_of_memory_failure(error, used, method) from error
    ladder.write(attempt.folder)
    batches = describe_batches(ladder.apply(used))
    if context.group.size > 1:
        raise PeerLost(
            f"{error}; training resumes with {batches} when all processes have restarted"
        ) from error
    logger.warning("%s; resuming with %s", error, batches)
