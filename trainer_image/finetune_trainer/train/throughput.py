# SPDX-License-Identifier: Apache-2.0
"""Figures of optimizer steps, and their averages: loss, rewards, tokens per second, time left."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from finetune_trainer.contract.progress import Progress
from finetune_trainer.distributed.process_group import Group
from finetune_trainer.train.rewards import RewardSums

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
