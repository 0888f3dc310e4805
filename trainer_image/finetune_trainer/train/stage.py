"""The stage itself: go on from the newest state or begin, train to the last step, publish."""

import logging
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.objects import ArtifactRef
from finetune_trainer.contract.outcomes import ExitCode, FailureReason
from finetune_trainer.contract.results import TrainResult
from finetune_trainer.distributed.group import PeerLost
from finetune_trainer.model.device import choose_device, peak_memory
from finetune_trainer.rows import SPLIT_FILES, SplitName, load_rows
from finetune_trainer.runtime.failure import Preempted, StageFailure
from finetune_trainer.stage.context import StageContext
from finetune_trainer.store import RunFolder
from finetune_trainer.tokens.answers import Encoder, encoder_of
from finetune_trainer.tokens.encode import RowNotEncodable
from finetune_trainer.tokens.template import load_tokenizer
from finetune_trainer.train.factory import is_sharded, make_trainer
from finetune_trainer.train.guards.memory import BatchSplit, OutOfMemory, noticed, out_of_memory, release
from finetune_trainer.train.guards.watchdog import Watchdog
from finetune_trainer.train.loop import Loop, StoppedEarly
from finetune_trainer.train.method import Trainable, trainable_model
from finetune_trainer.train.metrics import Metrics
from finetune_trainer.train.report import training_report, write_training_report
from finetune_trainer.train.schedule import steps_per_epoch
from finetune_trainer.train.states.attempts import LostWork, Starts
from finetune_trainer.train.states.checkpoints import publish_checkpoints
from finetune_trainer.train.states.ledger import Fingerprint, Ledger
from finetune_trainer.train.states.resume import State, States
from finetune_trainer.train.states.retention import Retention
from finetune_trainer.train.states.weights import Weights

logger = logging.getLogger(__name__)


def run(config: TrainConfig, context: StageContext) -> TrainResult:
    """Train, or go on with it, and publish the checkpoints.

    On a CPU an interrupted run ends with the same weights, to the bit, as one that was not.
    Raises StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID, INVALID_CONFIG,
    INVALID_DATA, FINGERPRINT_MISMATCH, RESTARTED_WITHOUT_PROGRESS, LOSS_NOT_FINITE, LOSS_DIVERGED,
    OUT_OF_MEMORY, STORE_UNAVAILABLE), Preempted, PeerLost.
    Of several processes the leader publishes; the others return a result without checkpoints.
    """
    result = None
    while result is None:
        result = _attempt(config, context)
        release()
        if result is None:
            context.stop.release()
    return result


def _attempt(config: TrainConfig, context: StageContext) -> TrainResult | None:
    """The result; None where memory ran out, and the next attempt is to be made with smaller batches."""
    with context.store.run_folder(config.run, config.stage) as folder:
        group = context.group
        states = States(folder, group)
        state = states.newest(Fingerprint.of(config))
        split = BatchSplit(halvings=group.told(BatchSplit.read(folder).halvings))
        starts = Starts(folder, group)
        try:
            restarts = starts.begin(state.step if state else 0, split.halvings)
            if state:
                logger.info("going on after step %d of %d", state.step, config.hyperparameters.total_steps)
            with group.guarded():
                return _train(
                    config, context, folder=folder, states=states, state=state, split=split, restarts=restarts
                )
        except Preempted:
            starts.forgive()
            raise
        except OutOfMemory as error:
            used = split.of(config.hyperparameters)
            smaller = config.adapt_batch_size and split.can_halve(used, config.method.type)
            if not (error.by_batch and smaller):
                raise out_of_memory(error, used, config.method.type) from error
            split = split.halved()
            split.write(folder)
            if group.size > 1:
                raise PeerLost(
                    f"{error}; when all processes have started again, they go on with smaller batches"
                ) from error
            starts.forgive()
            used = split.of(config.hyperparameters)
            logger.warning(
                "%s; going on with batches of %d rows, accumulated %d times",
                error,
                used.per_device_batch_size,
                used.gradient_accumulation_steps,
            )
            return None


def _train(
    config: TrainConfig,
    context: StageContext,
    *,
    folder: RunFolder,
    states: States,
    state: State | None,
    split: BatchSplit,
    restarts: int,
) -> TrainResult:
    hyperparameters = split.of(config.hyperparameters)
    base = context.store.artifact(ArtifactRef(kind="models", digest=config.base_model))
    data = context.store.artifact(ArtifactRef(kind="datasets", digest=config.dataset), verify=True)
    group = context.group
    device = choose_device(group.local_rank, group.local_size)
    tokenizer = load_tokenizer(base)
    encoder = encoder_of(config.method.type, tokenizer)
    rows = _encode(data, "train", encoder, config, context)
    validation = _encode(data, "validation", encoder, config, context)
    longest = max((row.longest for row in rows), default=0)
    parent = _parent(config, context)
    epoch_steps = _check_steps(len(rows), hyperparameters)
    set_seed(hyperparameters.seed)
    retention, lost_work = Retention.of(config), LostWork(folder, group)
    begin = state.step if state else 0
    timeout = config.step_timeout_seconds
    with Watchdog(config.run, timeout, begin, states.last_saved, group, config=config) as watchdog:
        with noticed("loading the base model", device, longest, by_batch=False):
            # Whole only in the memory of the node; each layer goes to the device in parts.
            placed = torch.device("cpu") if is_sharded(config.method, group) else device
            model = trainable_model(base, config.method, placed, parent)
        weights = Weights(model, config.base_model, base, tokenizer)
        ledger = state.ledger.model_copy(deep=True) if state else Ledger(fingerprint=Fingerprint.of(config))
        metrics = Metrics(device)
        stopped_early = False
        served = metrics.served(config.metrics_port) if group.leads else nullcontext()
        with noticed("training", device, longest, by_batch=True), served:
            trainer = make_trainer(
                model,
                rows,
                tokenizer=tokenizer,
                method=config.method,
                hyperparameters=hyperparameters,
                folder=folder.path,
                device=device,
                continues=parent is not None,
                group=group,
            )
            trainer.add_callback(
                Loop(
                    trainer=trainer,
                    validation=trainer.batches(validation),
                    states=states,
                    ledger=ledger,
                    hyperparameters=hyperparameters,
                    steps_per_epoch=epoch_steps,
                    context=context,
                    metrics=metrics,
                    weights=weights,
                    retention=retention,
                    lost_work=lost_work,
                    watchdog=watchdog,
                )
            )
            _log_size(model, len(rows), len(validation), config)
            try:
                trainer.train(resume_from_checkpoint=str(state.folder) if state else None)
            except StoppedEarly:
                stopped_early = True
        final = weights.collect()
    group.part()
    context.stop.release()
    steps = trainer.state.global_step
    if stopped_early:
        logger.info(
            "stopped early after step %d of %d: no lower validation loss for %d epochs",
            steps,
            hyperparameters.total_steps,
            hyperparameters.early_stopping_patience,
        )
    result = TrainResult(
        steps=steps,
        train_loss=ledger.train_loss,
        validation_loss=ledger.validation_loss,
        tokens=ledger.tokens,
        tokens_per_second=round(ledger.tokens / lost_work.seconds, 1) if lost_work.seconds else None,
        device_memory_bytes=peak_memory(device),
        restarts=restarts,
        lost_device_seconds=round(lost_work.lost_device_seconds, 1),
        loss_curve=ledger.curve.shown(),
        stopped_early=stopped_early,
        overfit=ledger.overfit,
        per_device_batch_size=hyperparameters.per_device_batch_size if split.halvings else None,
        gradient_accumulation_steps=hyperparameters.gradient_accumulation_steps if split.halvings else None,
        checkpoints=publish_checkpoints(
            context.store,
            states,
            ledger,
            final,
            retention,
            step=steps,
            epoch=steps / epoch_steps,
        )
        if group.leads
        else (),
    )
    if not group.leads:
        return result
    uri = write_training_report(folder, training_report(config, result, ledger.curve))
    return result.model_copy(update={"report_uri": uri})


def _parent(config: TrainConfig, context: StageContext) -> Path | None:
    """The weights that training begins from, where they are not those of the base model."""
    if config.parent is None:
        return None
    logger.info("continuing from Checkpoint %s", config.parent.name)
    ref = ArtifactRef(kind="checkpoints", digest=config.parent.digest)
    return context.store.artifact(ref, verify=True)


def _encode(
    data: Path,
    split: SplitName,
    encoder: Encoder,
    config: TrainConfig,
    context: StageContext,
) -> list[Any]:
    encoded: list[Any] = []
    for number, row in enumerate(load_rows(data / SPLIT_FILES[split]), 1):
        if context.stop.is_set():
            raise Preempted
        try:
            encoded.append(encoder.encode(row).cut(config.hyperparameters.max_sequence_length))
        except RowNotEncodable as error:
            raise StageFailure(
                FailureReason.INVALID_DATA, f"{split} row {number}: {error}", ExitCode.BAD_DATA
            ) from error
    return encoded


def _check_steps(rows: int, chosen: Hyperparameters) -> int:
    """Steps an epoch. Raises StageFailure (INVALID_CONFIG) where the config counts otherwise."""
    steps = steps_per_epoch(
        rows, chosen.per_device_batch_size, chosen.gradient_accumulation_steps, chosen.processes
    )
    if steps == 0 or steps * chosen.epochs != chosen.total_steps:
        raise StageFailure(
            FailureReason.INVALID_CONFIG,
            f"hyperparameters.totalSteps: {chosen.total_steps}, but {rows} training rows make"
            f" {steps * chosen.epochs} steps; these hyperparameters belong to another dataset",
        )
    return steps


def _log_size(model: Trainable, rows: int, validation_rows: int, config: TrainConfig) -> None:
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    logger.info(
        "%s: %d parameters are trained on %d rows, %d rows validate, %d steps on %s",
        config.method.type,
        trained,
        rows,
        validation_rows,
        config.hyperparameters.total_steps,
        model.device,
    )
