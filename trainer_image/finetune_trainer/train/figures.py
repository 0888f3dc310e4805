# SPDX-License-Identifier: Apache-2.0
"""Figures of optimizer steps and validations: losses, rewards, tokens per second, time left.

A reward says how far training has moved the model towards an answer. DPO and KTO: beta times the answer's
log-likelihood minus that under the reference model. ORPO, which has no reference model: beta times the mean
log-likelihood of the answer's tokens. Losses by row serve the comparison of a learning curve's points.
"""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from pydantic import BaseModel
from torch import Tensor

from finetune_trainer.contract.results import Progress
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.train.state_folders import ROW_LOSSES


def describe_rewards(rewards: "RewardSums | None", prefix: str = "") -> str:
    """Text for the log after a loss, each name with `prefix`; empty without rewards."""
    if rewards is None:
        return ""
    figures = (("accuracy", rewards.accuracy), ("margin", rewards.margin))
    return "".join(f", {prefix}reward {name} {value:.4f}" for name, value in figures if value is not None)


class RewardSums(BaseModel):
    """Rewards summed over rows; bit-identical across restarts."""

    chosen: float = 0
    """Summed rewards of chosen (KTO: desirable) answers."""
    chosen_rows: int = 0
    rejected: float = 0
    """Summed rewards of rejected (KTO: undesirable) answers."""
    rejected_rows: int = 0
    right: int = 0
    """Number of pairs whose chosen answer has the higher reward."""
    pairs: int = 0
    """Number of pairs; 0 in KTO, whose rows have one answer each."""

    def __add__(self, other: "RewardSums") -> "RewardSums":
        own, others = self.model_dump(), other.model_dump()
        return RewardSums(**{name: own[name] + others[name] for name in own})

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Create from the values of all fields, in their order."""
        return cls.model_validate(dict(zip(cls.model_fields, values, strict=True)))

    def all_reduced(self, group: Group) -> "RewardSums":
        """Sum over all processes. Collective."""
        return RewardSums.of(group.all_reduce_sum(*self.model_dump().values()))

    @property
    def rows(self) -> int:
        """Number of rows; a pair is one row."""
        return self.pairs or self.chosen_rows + self.rejected_rows

    @property
    def accuracy(self) -> float | None:
        """Share of pairs whose chosen answer has the higher reward; None without pairs."""
        return self.right / self.pairs if self.pairs else None

    @property
    def margin(self) -> float | None:
        """Mean reward of chosen minus rejected answers; None if one kind is missing."""
        if not (self.chosen_rows and self.rejected_rows):
            return None
        return self.chosen / self.chosen_rows - self.rejected / self.rejected_rows

    def figures(self) -> dict[str, float | None]:
        """Accuracy and margin, under the names of the contract's fields."""
        return {"reward_accuracy": self.accuracy, "reward_margin": self.margin}


AVERAGED_STEPS: Final = 20
"""Number of steps that loss and throughput are averaged over."""


@dataclass(frozen=True)
class StepFigures:
    """Tokens and loss of one optimizer step."""

    loss_sum: float
    """Summed loss in nats, over the tokens or rows that `labels` counts."""
    labels: int
    """Number of labelled tokens; of rows for methods with one loss per row."""
    tokens: int
    """Number of tokens read, without padding."""
    rewards: RewardSums | None = None
    """Rewards; None for methods without rewards."""

    @property
    def loss(self) -> float:
        """Mean loss per labelled token, or per row."""
        return self.loss_sum / self.labels

    def all_reduced(self, group: Group) -> "StepFigures":
        """Sum over all processes. Collective."""
        loss_sum, labels, tokens = group.all_reduce_sum(self.loss_sum, self.labels, self.tokens)
        rewards = None if self.rewards is None else self.rewards.all_reduced(group)
        return StepFigures(loss_sum, int(labels), int(tokens), rewards)


class Throughput:
    """Averages over the last steps of this process."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._steps: deque[tuple[StepFigures, float]] = deque(maxlen=AVERAGED_STEPS)
        """Figures and duration in seconds of each step."""
        self._began_at = time.monotonic()

    def begin_step(self) -> None:
        """Start the clock."""
        self._began_at = time.monotonic()

    def end_step(self, figures: StepFigures) -> None:
        """Stop the clock."""
        self._steps.append((figures, time.monotonic() - self._began_at))

    @property
    def rewards(self) -> RewardSums | None:
        """Summed rewards of the last steps; None for methods without rewards."""
        known = [figures.rewards for figures, _ in self._steps if figures.rewards is not None]
        return sum(known, RewardSums()) if known else None

    def progress(self, step: int, epoch: float, learning_rate: float) -> Progress:
        """The progress to report after a step of this process."""
        seconds = sum(duration for _, duration in self._steps)
        rewards = self.rewards or RewardSums()
        return Progress(
            step=step,
            total_steps=self._total_steps,
            epoch=round(epoch, 3),
            loss=sum(figures.loss_sum for figures, _ in self._steps)
            / sum(figures.labels for figures, _ in self._steps),
            reward_accuracy=rewards.accuracy,
            reward_margin=rewards.margin,
            learning_rate=learning_rate,
            tokens_per_second=round(sum(figures.tokens for figures, _ in self._steps) / seconds, 1),
            eta_seconds=round((self._total_steps - step) * seconds / len(self._steps), 1),
        )


class RowLosses(BaseModel):
    """Losses of all held-out rows, in the order of the rows."""

    sums: list[float]
    """Summed loss of each row, in nats; for preference methods its only loss."""
    weights: list[int]
    """Labelled tokens of each row; 1 for preference methods."""

    @classmethod
    def read(cls, folder: Path) -> "RowLosses":
        """Those saved with the best weights of a run in `folder`. Raises OSError, ValidationError."""
        return cls.model_validate_json((folder / ROW_LOSSES).read_bytes())

    @property
    def mean(self) -> float:
        """Mean loss in the trainer's unit."""
        return sum(self.sums) / sum(self.weights)


class RowLossCollector:
    """Collects the losses of this process's rows while it validates."""

    def __init__(self, numbers: Sequence[int], rows: int) -> None:
        """Expect the rows `numbers`, in this order; numbers from `rows` on are of rows that do not count."""
        self._numbers = numbers
        self._rows = rows
        self._sums: list[float] = []
        self._weights: list[int] = []

    def add(self, losses: Tensor, weights: Tensor) -> None:
        """Add the summed losses and the weights of the rows of the next batch, of shape (rows,)."""
        self._sums += losses.tolist()
        self._weights += weights.long().tolist()

    def gathered(self, group: Group) -> RowLosses:
        """The losses of the rows of all processes. Collective."""
        figures = [0.0] * (2 * self._rows)
        for number, loss, weight in zip(self._numbers, self._sums, self._weights, strict=True):
            if number < self._rows:
                figures[number], figures[self._rows + number] = loss, weight
        summed = group.all_reduce_sum(*figures)
        return RowLosses(sums=summed[: self._rows], weights=[int(each) for each in summed[self._rows :]])


@dataclass(frozen=True)
class Validation:
    """Result of a validation."""

    loss: float
    """Mean loss, in the trainer's unit."""
    rewards: RewardSums | None = None
    """Rewards, for methods that train on preference data."""
