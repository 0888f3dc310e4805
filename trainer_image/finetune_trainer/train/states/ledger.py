# SPDX-License-Identifier: Apache-2.0
"""The figures of a run that its states carry, in addition to weights, optimizer and random numbers.

- The fingerprint: inputs that must be equal to resume.
- The loss curve, of bounded size. Interruptions do not change it.
- Recent losses, by which divergence is detected. A loss is high if it exceeds the median of the previous
  steps by `HIGH_LOSS_FACTOR`. Unusual rows cause a few such steps; `MAX_HIGH_LOSS_STEPS` consecutive ones
  mean divergence.
- The best step, and by `Retention` the steps whose weights are kept to become Checkpoints, in addition to the
  best and final ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from finetune_trainer.contract.base import Contract, Digest, dump_set_fields
from finetune_trainer.contract.configs import TrainConfig
from finetune_trainer.contract.hyperparameters import Hyperparameters, StepDivision
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.results import LossPoint
from finetune_trainer.contract.vocabulary import ChatTemplateKwargs, SplitName
from finetune_trainer.train.figures import RewardSums, StepFigures

HIGH_LOSS_FACTOR: Final = 10
MAX_HIGH_LOSS_STEPS: Final = 5
MEDIAN_STEPS: Final = 50
"""Number of steps in the running median."""
MIN_STEPS: Final = 20
"""Number of steps before any loss counts as high, because the loss falls fast at first."""
MIN_HIGH_LOSS: Final = 1.0
"""In nats per token. Memorized rows have a median near zero, and ten times that is still low."""

MAX_POINTS: Final = 100
"""Points of each kind in a stored curve."""
MAX_SHOWN_POINTS: Final = 32
"""Points in a result and in a Checkpoint."""


class TrainingPoint(BaseModel):
    """Training loss of consecutive steps."""

    step: int
    """The last step."""
    steps: int
    """Number of steps."""
    loss_sum: float
    label_tokens: int

    @property
    def loss(self) -> float:
        """Mean loss per token in nats, or per row."""
        return self.loss_sum / self.label_tokens

    def joined(self, other: "TrainingPoint") -> "TrainingPoint":
        """Join with the point of the following steps."""
        return TrainingPoint(
            step=other.step,
            steps=self.steps + other.steps,
            loss_sum=self.loss_sum + other.loss_sum,
            label_tokens=self.label_tokens + other.label_tokens,
        )


class ValidationPoint(BaseModel):
    """The lowest validation loss of consecutive epochs, in the trainer's unit."""

    step: int
    loss: float
    epochs: int = 1

    def joined(self, other: "ValidationPoint") -> "ValidationPoint":
        """Join with the point of the following epochs."""
        lower = self if self.loss <= other.loss else other
        return ValidationPoint(step=lower.step, loss=lower.loss, epochs=self.epochs + other.epochs)


class LossCurve(BaseModel):
    """Training and validation losses, at most `MAX_POINTS` each; a full list joins neighbouring points."""

    points: list[TrainingPoint] = []
    steps_per_point: int = 1
    validation: list[ValidationPoint] = []
    epochs_per_point: int = 1

    def add_step(self, loss_sum: float, label_tokens: int) -> None:
        """Add the summed loss and the number of labelled tokens of the next step."""
        last = self.points[-1] if self.points else None
        new = TrainingPoint(
            step=last.step + 1 if last else 1, steps=1, loss_sum=loss_sum, label_tokens=label_tokens
        )
        if last is not None and last.steps < self.steps_per_point:
            self.points[-1] = last.joined(new)
            return
        if len(self.points) == MAX_POINTS:
            self.points = _halve_points(self.points)
            self.steps_per_point *= 2
        self.points.append(new)

    def add_validation(self, step: int, loss: float) -> None:
        """Add the validation loss after the last step of an epoch."""
        new = ValidationPoint(step=step, loss=loss)
        if self.validation and self.validation[-1].epochs < self.epochs_per_point:
            self.validation[-1] = self.validation[-1].joined(new)
            return
        if len(self.validation) == MAX_POINTS:
            pairs = zip(self.validation[::2], self.validation[1::2], strict=True)
            self.validation = [first.joined(second) for first, second in pairs]
            self.epochs_per_point *= 2
        self.validation.append(new)

    def shown(self) -> tuple[LossPoint, ...]:
        """At most `MAX_SHOWN_POINTS` points to four digits, with the last validation loss of their steps."""
        points = self.points
        while len(points) > MAX_SHOWN_POINTS:
            points = _halve_points(points)
        return tuple((point.step, _rounded(point.loss), self._validation_loss(point)) for point in points)

    def _validation_loss(self, point: TrainingPoint) -> float | None:
        first = point.step - point.steps + 1
        losses = [each.loss for each in self.validation if first <= each.step <= point.step]
        return _rounded(losses[-1]) if losses else None


def _halve_points(points: Sequence[TrainingPoint]) -> list[TrainingPoint]:
    """Join each pair of neighbouring points; of an odd number, the last stays single."""
    joined = [first.joined(second) for first, second in zip(points[::2], points[1::2], strict=False)]
    return joined if len(points) % 2 == 0 else [*joined, points[-1]]


def _rounded(loss: float) -> float:
    return float(f"{loss:.4g}")


class RecentLosses(BaseModel):
    """Recent losses in nats per labelled token, one per optimizer step; bit-identical across restarts."""

    usual: list[float] = []
    """The newest losses that were not high, at most `MEDIAN_STEPS`."""
    high_steps: int = 0
    """Number of consecutive high losses up to the newest."""

    @property
    def median(self) -> float:
        """Median of the usual losses. Raises statistics.StatisticsError if there are none yet."""
        return median(self.usual)

    @property
    def diverged(self) -> bool:
        """Whether the loss has been high for too many consecutive steps."""
        return self.high_steps >= MAX_HIGH_LOSS_STEPS

    def add(self, loss: float) -> None:
        """Add the loss of one optimizer step."""
        if len(self.usual) >= MIN_STEPS and loss > max(HIGH_LOSS_FACTOR * self.median, MIN_HIGH_LOSS):
            self.high_steps += 1
            return
        self.high_steps = 0
        self.usual = [*self.usual, loss][-MEDIAN_STEPS:]


class KeptStep(BaseModel):
    """Kept weights; losses in the trainer's unit."""

    step: int
    epoch: float
    train_loss: float
    """Mean training loss of the epoch up to this step."""
    validation_loss: float | None = None
    """Validation loss, if validation ran after this step."""


@dataclass(frozen=True)
class Retention:
    """Keeps the newest periodic saves, and steps that are always kept.

    The last step is not among them, because its weights are the final ones. Since a run may end early after
    any step, one more periodic save than `newest` is kept until the run ends.
    """

    newest: int
    """Number of newest periodic saves to publish."""
    always: frozenset[int]
    """Steps that are always published."""
    every_steps: int
    total_steps: int

    @classmethod
    def of(cls, config: TrainConfig) -> "Retention":
        """The retention of a run."""
        hyperparameters = config.hyperparameters
        return cls(
            config.keep,
            frozenset(config.keep_steps),
            hyperparameters.save_every_steps,
            hyperparameters.total_steps,
        )

    def keeps(self, step: int, *, loss_is_high: bool) -> bool:
        """Whether the weights after `step` are kept. A periodic save is skipped if `loss_is_high`."""
        if step == self.total_steps:
            return False
        periodic = self.newest > 0 and step % self.every_steps == 0 and not loss_is_high
        return periodic or step in self.always

    def candidates(self, kept: Sequence[KeptStep]) -> list[KeptStep]:
        """The steps of `kept` that may become a Checkpoint, sorted by step."""
        return self._choose(kept, self.newest + 1)

    def published(self, kept: Sequence[KeptStep], final_step: int) -> list[KeptStep]:
        """The steps of `kept` that become Checkpoints, in addition to the last step of the run."""
        return self._choose([each for each in kept if each.step != final_step], self.newest)

    def _choose(self, kept: Sequence[KeptStep], limit: int) -> list[KeptStep]:
        periodic = [each.step for each in kept if each.step not in self.always]
        steps = self.always.union(periodic[-limit:] if self.newest else ())
        return [each for each in kept if each.step in steps]


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
            name: dump_set_fields(value) if isinstance(value, Contract) else value
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
