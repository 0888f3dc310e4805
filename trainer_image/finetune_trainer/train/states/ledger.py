# SPDX-License-Identifier: Apache-2.0
"""The figures of a run that its states carry, in addition to weights, optimizer and random numbers."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from finetune_trainer.contract.base import Contract, Digest, without_unset
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters, StepDivision
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, SplitName
from finetune_trainer.train.rewards import RewardSums
from finetune_trainer.train.states.losses import LossCurve, RecentLosses
from finetune_trainer.train.states.retention import KeptStep, Retention
from finetune_trainer.train.throughput import StepFigures

OVERFIT_RISE_FACTOR: Final = 1.05
"""A validation loss has risen if it exceeds the lowest one by this factor; less is noise of few rows."""
OVERFIT_MIN_RISE: Final = 0.01
"""It must also have risen by this many nats per token, because near zero every change is relatively large."""


NOT_IN_FINGERPRINT: Final = frozenset({"processes", *StepDivision.model_fields})
"""Hyperparameters that only say how the rows of a step are divided: the weights do not depend on them."""


class Fingerprint(BaseModel):
    """The inputs that must be equal to resume from a state."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: Digest
    parent: Digest | None = None
    """Digest of the Checkpoint that the run continues from."""
    dataset: Digest
    test_dataset: Digest | None = None
    """Dataset whose rows are left out of training; None if it is not another one than `dataset`."""
    test_split: SplitName | None = None
    """Split of `test_dataset`."""
    method: Method
    hyperparameters: Hyperparameters
    chat_template_kwargs: ChatTemplateKwargs = Field(default={})

    @model_serializer
    def _settings(self) -> dict[str, Any]:
        """Omit what is not set: trainers of another release may not know it. Omit the division of a step."""
        values = {
            name: without_unset(value) if isinstance(value, Contract) else value
            for name, value in self
            if value is not None
        }
        for name in NOT_IN_FINGERPRINT:
            values["hyperparameters"].pop(name, None)
        return values

    @classmethod
    def of(cls, config: TrainConfig) -> "Fingerprint":
        """The fingerprint of a run."""
        other = config.test_dataset if config.test_dataset != config.dataset else None
        return cls(
            base_model=config.base_model,
            parent=config.parent.digest if config.parent else None,
            dataset=config.dataset,
            test_dataset=other,
            test_split=config.test_split if other else None,
            method=config.method,
            hyperparameters=config.hyperparameters,
            chat_template_kwargs=config.chat_template_kwargs,
        )

    def differences(self, other: "Fingerprint") -> list[str]:
        """Describe the fields that differ, with both values."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [
            f"{field} {theirs.get(field)} → {mine.get(field)}"
            for field in {**mine, **theirs}
            if mine.get(field) != theirs.get(field)
        ]


class Best(BaseModel):
    """The weights with the lowest validation loss so far; losses in the trainer's unit."""

    step: int
    epoch: float
    train_loss: float
    validation_loss: float
    reward_accuracy: float | None = None
    reward_margin: float | None = None


class RunLedger(BaseModel):
    """The figures of a run, bit-identical across restarts."""

    fingerprint: Fingerprint
    division: StepDivision
    """How steps are divided, chosen at the first step. Only exhausted memory changes it."""
    tokens: int = 0
    """Number of tokens read in training, without padding."""
    epoch_loss_sum: float = 0
    """Summed loss of the current epoch."""
    epoch_label_tokens: int = 0
    """Number of labelled tokens of the current epoch; of rows for methods with one loss per row."""
    epoch_rewards: RewardSums | None = None
    """Rewards of the current epoch; None for methods without rewards."""
    train_loss: float | None = None
    """Mean loss of the last complete epoch, in the trainer's unit."""
    train_rewards: RewardSums | None = None
    """Rewards of the last complete epoch."""
    interval_loss_sum: float = 0
    """Summed loss since the last validation."""
    interval_label_tokens: int = 0
    """Number of labelled tokens since the last validation; of rows for methods with one loss per row."""
    validated_train_loss: float | None = None
    """Mean training loss between the last two validations."""
    validation_loss: float | None = None
    """Loss of the last validation."""
    validation_rewards: RewardSums | None = None
    """Rewards of the validation rows at the last validation."""
    evaluated_step: int = 0
    """The step of the last validation."""
    best: Best | None = None
    kept: list[KeptStep] = Field(default_factory=list)
    """Kept weights, sorted by step."""
    losses: RecentLosses = Field(default_factory=RecentLosses)
    curve: LossCurve = Field(default_factory=LossCurve)

    def add_step(self, figures: StepFigures) -> None:
        """Count one optimizer step of all processes."""
        if figures.rewards is not None:
            self.epoch_rewards = (self.epoch_rewards or RewardSums()) + figures.rewards
        self.epoch_loss_sum += figures.loss_sum
        self.epoch_label_tokens += figures.labels
        self.interval_loss_sum += figures.loss_sum
        self.interval_label_tokens += figures.labels
        self.tokens += figures.tokens
        self.losses.add(figures.loss)
        self.curve.add_step(figures.loss_sum, figures.labels)

    def reward_figures(self) -> dict[str, float | None]:
        """Rewards of the validation rows, else of the last epoch's training rows; empty without rewards."""
        rewards = self.validation_rewards or self.train_rewards
        return {} if rewards is None else rewards.figures()

    @property
    def final_train_loss(self) -> float | None:
        """Mean loss of the last complete epoch; before that, up to the last validation."""
        return self.validated_train_loss if self.train_loss is None else self.train_loss

    @property
    def steps_since_best(self) -> int:
        """Steps between the lowest and the last validation loss; 0 without validation."""
        return 0 if self.best is None else self.evaluated_step - self.best.step

    @property
    def overfit(self) -> bool:
        """Whether the validation loss rose after the best step while the training loss fell."""
        train_loss = self.train_loss if self.validated_train_loss is None else self.validated_train_loss
        if self.best is None or self.validation_loss is None or train_loss is None:
            return False
        lowest = self.best.validation_loss
        has_risen = self.validation_loss > max(lowest * OVERFIT_RISE_FACTOR, lowest + OVERFIT_MIN_RISE)
        return has_risen and train_loss < self.best.train_loss

    def keep(self, step: int, epoch: float, retention: Retention) -> None:
        """Record that the weights after the last counted step are kept."""
        mean = self.epoch_loss_sum / self.epoch_label_tokens
        self.kept = retention.candidates([*self.kept, KeptStep(step=step, epoch=epoch, train_loss=mean)])

    def end_validation(self, step: int, loss: float) -> None:
        """Record the validation loss after a step."""
        self.validation_loss, self.evaluated_step = loss, step
        self.validated_train_loss = self.interval_loss_sum / self.interval_label_tokens
        self.interval_loss_sum, self.interval_label_tokens = 0.0, 0
        self.curve.add_validation(step, loss)
        if self.kept and self.kept[-1].step == step:
            self.kept[-1].validation_loss = loss

    def end_epoch(self) -> None:
        """Compute the mean of the current epoch, and reset its sums."""
        self.train_loss = self.epoch_loss_sum / self.epoch_label_tokens
        self.train_rewards = self.epoch_rewards
        self.epoch_loss_sum, self.epoch_label_tokens, self.epoch_rewards = 0.0, 0, None
