"""What a run has to remember from one pod to the next beside weights, optimizer and random numbers."""

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from finetune_trainer.contract.base import Digest
from finetune_trainer.contract.configs.train import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters
from finetune_trainer.contract.method import Method
from finetune_trainer.train.preference.rewards import RewardSums
from finetune_trainer.train.states.losses import LossCurve, RecentLosses, StoredModel
from finetune_trainer.train.states.retention import KeptStep, Retention
from finetune_trainer.train.throughput import StepFigures

OVERFIT_RISE_FACTOR: Final = 1.05
"""A validation loss above the lowest one times this has risen; less is the noise of few rows."""
OVERFIT_MIN_RISE: Final = 0.01
"""Nats a token that it must have risen by as well: near zero every change is a large part."""


class Fingerprint(BaseModel):
    """What must be equal for a state to be gone on from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_model: Digest
    parent: Digest | None = None
    """The Checkpoint that the run continues from."""
    dataset: Digest
    method: Method
    hyperparameters: Hyperparameters

    @classmethod
    def of(cls, config: TrainConfig) -> "Fingerprint":
        """The run's own."""
        return cls(
            base_model=config.base_model,
            parent=config.parent.digest if config.parent else None,
            dataset=config.dataset,
            method=config.method,
            hyperparameters=config.hyperparameters,
        )

    def differences(self, other: "Fingerprint") -> list[str]:
        """Names of the fields that differ, with both values."""
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [f"{field} {theirs[field]} → {mine[field]}" for field in mine if mine[field] != theirs[field]]


class Best(BaseModel):
    """The weights with the lowest validation loss so far; losses in the learner's unit."""

    step: int
    epoch: float
    train_loss: float
    validation_loss: float
    reward_accuracy: float | None = None
    reward_margin: float | None = None


class RunLedger(StoredModel):
    """The run's own figures, exact to the last bit across restarts."""

    fingerprint: Fingerprint
    tokens: int = 0
    """Tokens read in training, padding not counted."""
    epoch_loss_sum: float = Field(default=0, alias="epoch_nats")
    """Summed loss of the current epoch."""
    epoch_label_tokens: int = Field(default=0, alias="epoch_labels")
    """Labelled tokens of the current epoch; rows, where the loss is one a row."""
    epoch_rewards: RewardSums | None = None
    """Of the current epoch; None where answers have no rewards."""
    train_loss: float | None = None
    """Mean of the last complete epoch, in the learner's unit."""
    train_rewards: RewardSums | None = None
    """Of the last complete epoch."""
    validation_loss: float | None = None
    """After the last complete epoch."""
    validation_rewards: RewardSums | None = None
    """After the last complete epoch."""
    evaluated_step: int = 0
    """The step after which validation ran last."""
    best: Best | None = None
    kept: list[KeptStep] = Field(default_factory=list)
    """In the order of their steps."""
    losses: RecentLosses = Field(default_factory=RecentLosses)
    curve: LossCurve = Field(default_factory=LossCurve)

    def add_step(self, figures: StepFigures) -> None:
        """Count one optimizer step of all processes."""
        if figures.rewards is not None:
            self.epoch_rewards = (self.epoch_rewards or RewardSums()) + figures.rewards
        self.epoch_loss_sum += figures.loss_sum
        self.epoch_label_tokens += figures.labels
        self.tokens += figures.tokens
        self.losses.add(figures.loss)
        self.curve.add_step(figures.loss_sum, figures.labels)

    def reward_figures(self) -> dict[str, float | None]:
        """Of the validation rows, else of the last epoch's training rows; empty without rewards."""
        rewards = self.validation_rewards or self.train_rewards
        return {} if rewards is None else rewards.figures()

    @property
    def steps_since_best(self) -> int:
        """Steps from the lowest validation loss to the last one; 0 without validation."""
        return 0 if self.best is None else self.evaluated_step - self.best.step

    @property
    def overfit(self) -> bool:
        """Whether the validation loss has risen since the best epoch while the training loss has fallen."""
        if self.best is None or self.validation_loss is None or self.train_loss is None:
            return False
        lowest = self.best.validation_loss
        risen = self.validation_loss > max(lowest * OVERFIT_RISE_FACTOR, lowest + OVERFIT_MIN_RISE)
        return risen and self.train_loss < self.best.train_loss

    def keep(self, step: int, epoch: float, retention: Retention) -> None:
        """The weights after the last step counted are kept."""
        mean = self.epoch_loss_sum / self.epoch_label_tokens
        self.kept = retention.held([*self.kept, KeptStep(step=step, epoch=epoch, train_loss=mean)])

    def end_validation(self, step: int, loss: float) -> None:
        """Note the validation loss after a step."""
        self.validation_loss, self.evaluated_step = loss, step
        self.curve.add_validation(step, loss)
        if self.kept and self.kept[-1].step == step:
            self.kept[-1].validation_loss = loss

    def end_epoch(self) -> None:
        """Turn the current epoch's sums into its mean."""
        self.train_loss = self.epoch_loss_sum / self.epoch_label_tokens
        self.train_rewards = self.epoch_rewards
        self.epoch_loss_sum, self.epoch_label_tokens, self.epoch_rewards = 0.0, 0, None
