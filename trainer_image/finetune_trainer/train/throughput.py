"""What optimizer steps read and gave, and how fast they go."""

import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from finetune_trainer.contract.progress import Progress
from finetune_trainer.distributed.group import Group
from finetune_trainer.train.preference.rewards import RewardSums

AVERAGED_STEPS: Final = 20
"""Steps that loss and speed are averaged over."""


@dataclass(frozen=True)
class StepFigures:
    """What one optimizer step read, and its loss."""

    loss_sum: float
    """In nats, over what the loss is a mean of."""
    labels: int
    """Labelled tokens, of which the loss is the mean; rows, where a method's loss is one per row."""
    tokens: int
    """Tokens read, padding not counted."""
    rewards: RewardSums | None = None
    """None where answers have no rewards."""

    @property
    def loss(self) -> float:
        """Mean loss per labelled token, or per row."""
        return self.loss_sum / self.labels

    def summed(self, group: Group) -> "StepFigures":
        """The same of all processes of the run; of rewards there is one process. Collective."""
        loss_sum, labels, tokens = group.all_reduce_sum(self.loss_sum, self.labels, self.tokens)
        return replace(self, loss_sum=loss_sum, labels=int(labels), tokens=int(tokens))


class Throughput:
    """Averages over the last steps of this process."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._steps: deque[tuple[StepFigures, float]] = deque(maxlen=AVERAGED_STEPS)
        """Each with its seconds."""
        self._began = time.monotonic()

    def begin_step(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def end_step(self, figures: StepFigures) -> None:
        """Stop the clock."""
        self._steps.append((figures, time.monotonic() - self._began))

    @property
    def rewards(self) -> RewardSums | None:
        """Of the last steps; None where answers have no rewards."""
        known = [done.rewards for done, _ in self._steps if done.rewards is not None]
        return sum(known, RewardSums()) if known else None

    def progress(self, step: int, epoch: float, learning_rate: float) -> Progress:
        """What the operator gets after a step of this process."""
        seconds = sum(taken for _, taken in self._steps)
        rewards = self.rewards or RewardSums()
        return Progress(
            step=step,
            total_steps=self._total_steps,
            epoch=round(epoch, 3),
            loss=sum(done.loss_sum for done, _ in self._steps) / sum(done.labels for done, _ in self._steps),
            reward_accuracy=rewards.accuracy,
            reward_margin=rewards.margin,
            learning_rate=learning_rate,
            tokens_per_second=round(sum(done.tokens for done, _ in self._steps) / seconds, 1),
            eta_seconds=round((self._total_steps - step) * seconds / len(self._steps), 1),
        )
