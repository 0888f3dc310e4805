# SPDX-License-Identifier: Apache-2.0
"""A training session: loads the model, passes the trainer's events to the callbacks, trains to the end.

`Attempt` decides where the session begins: the state that it resumes from, and how it divides a step.
`Events` adapts the events of transformers' Trainer to the callbacks.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from typing_extensions import override

from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters, StepDivision
from finetune_trainer.contract.method import TYPES, is_sharded
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.model.bundle import Bundle
from finetune_trainer.model.device import catch_out_of_memory, choose_device
from finetune_trainer.model.probe import probe_prompts
from finetune_trainer.stage.context import StageContext, StepWatchdog
from finetune_trainer.store import RunFolder
from finetune_trainer.train.callbacks import (
    Callback,
    Divergence,
    Heartbeat,
    ReportProgress,
    RetainCheckpoints,
    RunState,
    SaveState,
    StoppedEarly,
    Validate,
    validation_sample,
)
from finetune_trainer.train.factory import make_trainer
from finetune_trainer.train.inputs import TrainingData
from finetune_trainer.train.memory_ladder import MemoryLadder
from finetune_trainer.train.model_setup import Trainable, trainable_model
from finetune_trainer.train.parallel.shards import sharding_config
from finetune_trainer.train.preference.reference import KeptLikelihoods
from finetune_trainer.train.states.ledger import Fingerprint, Retention, RunLedger
from finetune_trainer.train.states.restarts import WastedTime
from finetune_trainer.train.states.resume_states import ResumeState, ResumeStates
from finetune_trainer.train.states.weights import ProbedWeights, TrainingWeights, bundle_of, training_weights
from finetune_trainer.train.training_metrics import TrainingMetrics


@dataclass(frozen=True)
class Attempt:
    """The contents of the run's folder at the start of a process."""

    folder: RunFolder
    states: ResumeStates
    state: ResumeState | None
    """The state to resume from; None for a run that starts."""
    ladder: MemoryLadder
    hyperparameters: Hyperparameters
    """Those of the run, with the division of the state; if memory ran out later, with smaller batches."""
    fingerprint: Fingerprint

    @classmethod
    def open(cls, config: TrainConfig, folder: RunFolder, group: Group) -> "Attempt":
        """Read the run's folder. Collective.

        Raises StageFailure (FINGERPRINT_MISMATCH, STORE_UNAVAILABLE).
        """
        states, fingerprint = ResumeStates(folder, group), Fingerprint.of(config)
        state = states.newest(fingerprint)
        ladder = MemoryLadder.read(folder).broadcast(group)
        hyperparameters = config.hyperparameters
        if state is not None:
            hyperparameters = hyperparameters.model_copy(update=state.ledger.division.model_dump())
        return cls(folder, states, state, ladder, ladder.apply(hyperparameters), fingerprint)

    @property
    def step(self) -> int:
        """The optimizer step after which the attempt starts."""
        return self.state.step if self.state else 0

    def ledger(self) -> RunLedger:
        """A copy of the state's ledger, to be continued, with the division of this attempt."""
        division = StepDivision(**self.hyperparameters.model_dump(include=set(StepDivision.model_fields)))
        if self.state is None:
            return RunLedger(fingerprint=self.fingerprint, division=division)
        return self.state.ledger.model_copy(update={"division": division}, deep=True)


class Events(TrainerCallback):
    """Passes each event to the callbacks, in their order."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        self._callbacks = callbacks

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.begin(state.global_step, state.epoch or 0.0)

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.begin_step()

    @override
    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.end_batch(state.global_step)

    @override
    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.before_update(state.global_step, kwargs["optimizer"])

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for callback in self._callbacks:
            callback.end_step(state.global_step, state.epoch or 0.0)


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingOutcome:
    """The outcome of a run after its last step."""

    steps: int
    epoch: float
    stopped_early: bool
    weights: TrainingWeights
    bundle: Bundle
    ledger: RunLedger
    wasted_time: WastedTime
    retention: Retention
    device: torch.device


@dataclass(frozen=True)
class TrainingSession:
    """A loaded model that is ready to train."""

    config: TrainConfig
    context: StageContext
    attempt: Attempt
    data: TrainingData
    device: torch.device
    model: Trainable
    continues: bool
    """Whether another run trained the weights before."""
    watchdog: StepWatchdog

    @classmethod
    @contextmanager
    def open(
        cls, config: TrainConfig, context: StageContext, attempt: Attempt, data: TrainingData
    ) -> Iterator["TrainingSession"]:
        """Load the model; the watchdog runs as long as the block.

        Raises OutOfMemory, StageFailure (ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT, BASE_MODEL_INVALID,
        INVALID_CONFIG, STORE_UNAVAILABLE), Preempted.
        """
        group = context.group
        device = choose_device(group.local_rank, group.local_size)
        parent = _parent_folder(config, context)
        set_seed(attempt.hyperparameters.seed)
        hangs = partial(_describe_hang, config.step_timeout_seconds, attempt)
        with StepWatchdog(config, attempt.step, hangs, group) as watchdog:
            with catch_out_of_memory("loading the base model", [device], data.max_row_tokens, by_batch=False):
                sharding = None
                if is_sharded(config.method.type, attempt.hyperparameters.sharded, group.size):
                    frozen = TYPES[config.method.type].trains_adapter
                    sharding = sharding_config(data.base, group.size, device, frozen=frozen)
                model = trainable_model(data.base, config.method, device, parent, sharding)
            yield cls(config, context, attempt, data, device, model, parent is not None, watchdog)

    def run(self, weights: TrainingWeights | None = None) -> TrainingOutcome:
        """Train to the last step, or until early stopping; `weights` replaces those that are kept.

        Raises OutOfMemory, StageFailure (LOSS_NOT_FINITE, LOSS_DIVERGED, STORE_UNAVAILABLE), Preempted,
        PeerLost.
        """
        config, data, group = self.config, self.data, self.context.group
        weights = weights or self._weights()
        ledger, metrics = self.attempt.ledger(), TrainingMetrics(self.device)
        stopped_early = False
        served = metrics.served(config.metrics_port) if group.is_main_process else nullcontext()
        with catch_out_of_memory("training", [self.device], data.max_row_tokens, by_batch=True), served:
            trainer = make_trainer(
                self.model,
                data.rows,
                tokenizer=data.tokenizer,
                method=config.method,
                hyperparameters=self.attempt.hyperparameters,
                folder=self.attempt.folder.path,
                device=self.device,
                continues=self.continues,
                group=group,
                references=KeptLikelihoods.of(
                    config, self.context, self.model, partial(self.watchdog.feed, self.attempt.step)
                ),
            )
            run = RunState(
                context=self.context,
                hyperparameters=self.attempt.hyperparameters,
                steps_per_epoch=data.steps_per_epoch,
                device=self.device,
                trainer=trainer,
                weights=weights,
                states=self.attempt.states,
                ledger=ledger,
                retention=Retention.of(config),
                wasted_time=WastedTime(self.attempt.folder, group, rungs=self.attempt.ladder.rungs),
                watchdog=self.watchdog,
                metrics=metrics,
            )
            saving = SaveState(run)
            validation = validation_sample(data.validation, self.attempt.hyperparameters)
            by_row = len(validation) if config.learning_curve else 0
            validating = Validate(run, trainer.batches(validation), saving, by_row)
            callbacks = (
                Heartbeat(run),
                ReportProgress(run),
                Divergence(run),
                RetainCheckpoints(run),
                validating,
                saving,
            )
            trainer.add_callback(Events(callbacks))
            self._log_size(len(validation))
            state = self.attempt.state
            try:
                trainer.train(resume_from_checkpoint=str(state.folder) if state else None)
            except StoppedEarly:
                stopped_early = True
        steps = trainer.state.global_step
        if stopped_early:
            logger.info(
                "stopped early after step %d of %d: no lower loss in %d validations",
                steps,
                self.attempt.hyperparameters.total_steps,
                self.attempt.hyperparameters.early_stopping_patience,
            )
        return TrainingOutcome(
            steps=steps,
            epoch=steps / data.steps_per_epoch,
            stopped_early=stopped_early,
            weights=weights,
            bundle=bundle_of(data.base, data.tokenizer),
            ledger=ledger,
            wasted_time=run.wasted_time,
            retention=run.retention,
            device=self.device,
        )

    def _weights(self) -> ProbedWeights:
        tokenizer = self.data.tokenizer
        prompts = probe_prompts(tokenizer, self.config.chat_template_kwargs)
        if not prompts:
            logger.warning("the chat template rejects the fixed prompts: the Checkpoints have no probe")
        return ProbedWeights(
            weights=training_weights(self.model, self.config.base_model, self.data.base),
            model=self.model,
            prompts=prompts,
            pad_token_id=tokenizer.pad_token_id,
            quantized=TYPES[self.config.method.type].quantized_base,
        )

    def _log_size(self, validation_rows: int) -> None:
        parameters = self.model.parameters()
        logger.info(
            "%s: training %d parameters on %d rows, validating on %d of %d rows, %d steps on %s",
            self.config.method.label,
            sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            len(self.data.rows),
            validation_rows,
            len(self.data.validation),
            self.config.hyperparameters.total_steps,
            self.model.device,
        )


def _describe_hang(timeout_seconds: int, attempt: Attempt, step: int) -> str:
    """Message of a run that hangs after `step`."""
    return (
        f"step {step + 1} hangs: no batch, validation batch or saved state finished within"
        f" {timeout_seconds} seconds. The next pod resumes from {attempt.states.last_saved()}. If it hangs"
        " again, find the cause in the pod's log, which has the stacks of all threads, and check its GPU and"
        " the store. If it is only slow, raise compute.stepTimeoutSeconds in a new run"
    )


def _parent_folder(config: TrainConfig, context: StageContext) -> Path | None:
    """Folder of the Checkpoint to continue from; None to start from the base model."""
    if config.parent is None:
        return None
    logger.info("continuing from Checkpoint %s", config.parent.name)
    ref = ArtifactRef(kind="checkpoints", digest=config.parent.digest)
    return context.store.artifact(ref, verify=True)
