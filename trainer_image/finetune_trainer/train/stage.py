"""The train stage: load, open, run, result, publish; again with less memory if it runs out."""

import logging
from pathlib import Path
from typing import Final

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.distributed.group import PeerLost
from finetune_trainer.model.device import peak_memory
from finetune_trainer.model.outofmemory import OutOfMemory, release_memory
from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.stage.context import StageContext
from finetune_trainer.train.attempt import Attempt
from finetune_trainer.train.guards.memory import describe_batches, out_of_memory_failure
from finetune_trainer.train.inputs import TrainingData
from finetune_trainer.train.report import training_report, write_training_report
from finetune_trainer.train.session import TrainingOutcome, TrainingSession
from finetune_trainer.train.states.checkpoints import publish_checkpoints
from finetune_trainer.train.states.restarts import RestartBudget

ADAPTED: Final = (
    "per_device_batch_size",
    "gradient_accumulation_steps",
    "max_batch_tokens",
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
    result = None
    while result is None:
        result = _attempt(config, context)
        release_memory()
        if result is None:
            context.stop.release()
    return result


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
    with TrainingSession.open(config, context, attempt, data) as session:
        outcome = session.run()
    result = _result(config, attempt, outcome, restarts)
    if not context.group.is_main_process:
        outcome.weights.contribute()
        _release(context)
        return result
    with context.store.staging() as final:
        outcome.weights.write(final)
        _release(context)
        return _publish(config, context, attempt, outcome, result, final=final)


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

    Raises StageFailure (OUT_OF_MEMORY) if it cannot or must not; PeerLost if other processes have to restart
    together with this one.
    """
    used, method = attempt.hyperparameters, config.method.type
    ladder = None
    if error.by_batch:
        ladder = attempt.ladder.next(used, error.max_row_tokens, adapts_batches=config.adapt_batch_size)
    if ladder is None:
        raise out_of_memory_failure(error, used, method) from error
    ladder.write(attempt.folder)
    batches = describe_batches(ladder.apply(config.hyperparameters))
    if context.group.size > 1:
        raise PeerLost(
            f"{error}; training resumes with {batches} when all processes have restarted"
        ) from error
    logger.warning("%s; resuming with %s", error, batches)
