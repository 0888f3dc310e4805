"""The train stage: load, open, run, result, publish; again with smaller batches if memory runs out."""

import logging

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.distributed.group import PeerLost
from finetune_trainer.model.device import peak_memory
from finetune_trainer.runtime.failure import Preempted
from finetune_trainer.stage.context import StageContext
from finetune_trainer.train.attempt import Attempt
from finetune_trainer.train.guards.memory import OutOfMemory, out_of_memory_failure, release_memory
from finetune_trainer.train.inputs import TrainingData
from finetune_trainer.train.report import training_report, write_training_report
from finetune_trainer.train.session import TrainingOutcome, TrainingSession
from finetune_trainer.train.states.checkpoints import publish_checkpoints
from finetune_trainer.train.states.restarts import RestartBudget

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
    """Train once; None if memory ran out and the next attempt must use smaller batches."""
    group = context.group
    with context.store.run_folder(config.run, config.stage) as folder:
        attempt = Attempt.open(config, folder, group)
        budget = RestartBudget(folder, group)
        try:
            restarts = budget.begin(attempt.step, attempt.split.halvings)
            if attempt.state:
                total = config.hyperparameters.total_steps
                logger.info("resuming after step %d of %d", attempt.step, total)
            with group.guarded():
                return _train(config, context, attempt, restarts)
        except Preempted:
            budget.refund()
            raise
        except OutOfMemory as error:
            _halve_batches(config, context, attempt, error)
            budget.refund()
            return None


def _train(config: TrainConfig, context: StageContext, attempt: Attempt, restarts: int) -> TrainResult:
    data = TrainingData.load(config, attempt.hyperparameters, context)
    with TrainingSession.open(config, context, attempt, data) as session:
        outcome = session.run()
    context.group.end_collectives()
    context.stop.release()
    result = _result(attempt, outcome, restarts)
    return _publish(config, context, attempt, outcome, result) if context.group.is_main_process else result


def _result(attempt: Attempt, outcome: TrainingOutcome, restarts: int) -> TrainResult:
    """The figures of a finished run, without checkpoints."""
    ledger, wasted_time, hyperparameters = outcome.ledger, outcome.wasted_time, attempt.hyperparameters
    halved = attempt.split.halvings > 0
    return TrainResult(
        steps=outcome.steps,
        train_loss=ledger.train_loss,
        validation_loss=ledger.validation_loss,
        tokens=ledger.tokens,
        tokens_per_second=round(ledger.tokens / wasted_time.seconds, 1) if wasted_time.seconds else None,
        device_memory_bytes=peak_memory(outcome.device),
        restarts=restarts,
        lost_device_seconds=round(wasted_time.lost_device_seconds, 1),
        loss_curve=ledger.curve.shown(),
        stopped_early=outcome.stopped_early,
        overfit=ledger.overfit,
        per_device_batch_size=hyperparameters.per_device_batch_size if halved else None,
        gradient_accumulation_steps=hyperparameters.gradient_accumulation_steps if halved else None,
        checkpoints=(),
    )


def _publish(
    config: TrainConfig,
    context: StageContext,
    attempt: Attempt,
    outcome: TrainingOutcome,
    result: TrainResult,
) -> TrainResult:
    """Publish checkpoints and report to the store, and add them to the result."""
    checkpoints = publish_checkpoints(
        context.store,
        attempt.states,
        outcome.ledger,
        outcome.weights,
        outcome.retention,
        bundle=outcome.bundle,
        step=outcome.steps,
        epoch=outcome.epoch,
    )
    result = result.model_copy(update={"checkpoints": checkpoints})
    report = training_report(config, result, outcome.ledger.curve)
    uri = write_training_report(attempt.folder, report)
    return result.model_copy(update={"report_uri": uri})


def _halve_batches(config: TrainConfig, context: StageContext, attempt: Attempt, error: OutOfMemory) -> None:
    """Halve the batches of the next attempt.

    Raises StageFailure (OUT_OF_MEMORY) if they cannot or must not be smaller; PeerLost if other processes
    have to restart together with this one.
    """
    split, used = attempt.split, attempt.hyperparameters
    can_halve = config.adapt_batch_size and split.can_halve(used, config.method.type)
    if not (error.by_batch and can_halve):
        raise out_of_memory_failure(error, used, config.method.type) from error
    split = split.halved()
    split.write(attempt.folder)
    if context.group.size > 1:
        raise PeerLost(
            f"{error}; training resumes with smaller batches when all processes have restarted"
        ) from error
    used = split.apply(config.hyperparameters)
    logger.warning(
        "%s; resuming with batches of %d rows, accumulated %d times",
        error,
        used.per_device_batch_size,
        used.gradient_accumulation_steps,
    )
